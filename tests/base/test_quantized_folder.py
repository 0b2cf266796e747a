"""A base in fewer bits is the base with other numbers in its linear layers, and trains as that base would."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import rankwise
from kit.classifiers import encoder_folder, labelled, write_rows
from kit.fast_forms import in_float64, rows, unsettle
from kit.summed_losses import summed
from rankwise.base.loading import load
from rankwise.config.adapters import AdaLoraConfig, FullConfig, HeadConfig, LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, RankwiseError
from rankwise.forward.activation_memory import activation_checkpointing, blocks_in_order
from rankwise.forward.fused import FusedLoss
from rankwise.forward.reference import SupervisedLogits
from rankwise.kernels.linear import is_conv1d
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.kernels.quantized.formats import FORMATS
from rankwise.kernels.quantized.tensor import is_quantized, stored_bytes, unpacked
from rankwise.methods.inject import inject
from rankwise.rows.encoded.batches import portion
from rankwise.rows.encoded.packing import flat
from rankwise.system.cache import cache_folder

IDS = torch.arange(40).reshape(2, 20)


def llama(vocabulary: int) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True,
    ))  # fmt: skip


def gpt2(vocabulary: int) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocabulary, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=2
    ))  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folders(hub_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases of two files each, by architecture."""
    found = {}
    for name, make in {"llama": llama, "gpt2": gpt2}.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp("bases") / name
        make(len(hub_tokenizer)).save_pretrained(found[name], max_shard_size="100KB")
        hub_tokenizer.save_pretrained(found[name])
        assert len(list(found[name].glob("*.safetensors"))) > 1
    return found


def loaded(folder: Path, quantize: str, dtype: str = "float32") -> nn.Module:
    return load(ModelConfig(name=str(folder), quantize=quantize, dtype=dtype)).module  # pyright: ignore[reportArgumentType]


def dense(module: nn.Module) -> nn.Module:
    """The same model with its weights unpacked."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(getattr(part, "weight", None), Tensor) and is_quantized(part.weight):
            part.weight = nn.Parameter(unpacked(part.weight).contiguous(), requires_grad=False)
    return twin


def same(one: Tensor, other: Tensor, rounding: float = 1e-5) -> bool:
    return bool((one - other).norm() <= rounding * other.norm())


each = pytest.mark.parametrize("architecture", ["llama", "gpt2"])
formats = pytest.mark.parametrize("quantize", ["nf4", "int8"])


@each
@formats
def test_linear_layers_are_quantised_and_everything_else_is_as_in_the_folder(folders, architecture, quantize):
    full, module = loaded(folders[architecture], "none"), loaded(folders[architecture], quantize)
    parts = dict(module.named_modules())
    for path, part in full.named_modules():
        for name, value in part.named_parameters(recurse=False):
            weight = getattr(parts[path], name)
            stored = name == "weight" and path != "lm_head" and (type(part) is nn.Linear or is_conv1d(part))
            assert is_quantized(weight) == stored, path
            expected = value.detach()
            if stored:
                matrix = expected.T if is_conv1d(part) else expected
                format, shape = FORMATS[quantize], tuple(matrix.shape)
                numbers, factor = format.unpack(format.pack(matrix), shape, torch.float32)
                numbers = numbers if factor is None else numbers * factor[:, None]
                expected = numbers.T if is_conv1d(part) else numbers
            assert torch.equal(unpacked(weight), expected), path
    assert module.lm_head.weight is module.get_input_embeddings().weight


@each
@formats
def test_its_outputs_are_those_of_its_numbers(folders, architecture, quantize):
    module = loaded(folders[architecture], quantize)
    with torch.no_grad():
        assert same(module(IDS).logits, dense(module)(IDS).logits)


def gradients(module: nn.Module, form: str) -> list[Tensor]:
    """Of LoRA factors that have moved, by one way to compute the loss."""
    adapters = inject(module, LoraConfig(rank=4))
    unsettle(adapters)
    parameters = list(adapters.parameters())
    (packed,) = flat(rows(), 10_000)
    blocks = blocks_in_order(module) if form == "eager, recomputed" else []
    with activation_checkpointing(blocks):
        if form.startswith("fused"):
            loss = FusedLoss(module, recomputed=2 if form == "fused, recomputed" else 0)(packed)
        else:
            loss = torch.stack([summed(SupervisedLogits(module))(batch) for batch in portion(rows(), 64)]).sum()
        found = list(torch.autograd.grad(loss, parameters))
    adapters.remove()
    return [*found, loss.detach()]


FORMS = ("eager", "eager, recomputed", "fused", "fused, recomputed")
WAYS = [(architecture, ("nf4", "int8")[(at + number) % 2], form)
        for number, architecture in enumerate(("llama", "gpt2")) for at, form in enumerate(FORMS)]  # fmt: skip


@pytest.mark.parametrize(("architecture", "quantize", "form"), WAYS)
def test_gradients_are_those_of_its_numbers_whatever_came_before(folders, architecture, quantize, form):
    """In float64, before and after answers with packed weights, after a move, and again."""
    module = loaded(folders[architecture], quantize).double()
    twin = dense(module)
    for one in (module, twin):
        in_float64(one)
    expected = gradients(twin, form)
    for before in ("nothing", "answers", "move", "nothing"):
        if before == "answers":
            with torch.no_grad(), prepacked_weights(module):
                module(IDS)
        elif before == "move":
            module.to("cpu").to(torch.float32).to(torch.float64)
        found = gradients(module, form)
        assert all(same(one, other, 1e-9) for one, other in zip(found, expected, strict=True)), before


@formats
def test_the_conversion_is_made_once_and_again_for_other_weights(folders, quantize, tmp_path, hub_tokenizer):
    loaded(folders["llama"], quantize)
    (entry,) = (cache_folder() / "models").iterdir()
    before = {file: file.stat().st_mtime_ns for file in entry.iterdir()}
    module = loaded(folders["llama"], quantize, "bfloat16")
    assert {file: file.stat().st_mtime_ns for file in entry.iterdir()} == before
    assert module.model.norm.weight.dtype == module.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    torch.manual_seed(1)
    llama(len(hub_tokenizer)).save_pretrained(tmp_path / "other")
    hub_tokenizer.save_pretrained(tmp_path / "other")
    other = loaded(tmp_path / "other", quantize)
    assert len(list((cache_folder() / "models").iterdir())) == 2
    assert not same(other(IDS).logits, module(IDS).logits.float(), 0.5)


def test_an_interrupted_conversion_leaves_nothing_and_a_damaged_one_is_named(folders, monkeypatch):
    class Stopped(Exception):
        pass

    with monkeypatch.context() as context:

        def stop(*_: object) -> None:
            raise Stopped

        context.setattr("rankwise.base.quantized_folder.save_file", stop)
        with pytest.raises((Stopped, ModelError)):
            loaded(folders["llama"], "int8")
    assert not list((cache_folder() / "models").glob("*"))
    loaded(folders["llama"], "int8")
    (entry,) = (cache_folder() / "models").iterdir()
    file = next(entry.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"in the cache is damaged.*Remove"):
        loaded(folders["llama"], "int8")


def test_weights_that_the_format_cannot_store_are_named(hub_tokenizer, tmp_path):
    folder = tmp_path / "odd"
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(hub_tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )).save_pretrained(folder)  # fmt: skip
    hub_tokenizer.save_pretrained(folder)
    said: list[str] = []
    module = load(ModelConfig(name=str(folder), quantize="nf4"), lambda event: said.append(str(event))).module
    assert not is_quantized(module.model.layers[0].mlp.down_proj.weight)
    assert is_quantized(module.model.layers[0].mlp.up_proj.weight)
    assert any("not quantised" in text and "down_proj" in text for text in said)


@pytest.fixture
def home(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} it is"}]}
        for n in range(12)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folders["llama"]


METHODS = {
    "lora": LoraConfig(rank=4), "dora": LoraConfig(rank=4, dora=True), "eva": LoraConfig(rank=4, start="eva"),
    "adalora": AdaLoraConfig(budget=2),
}  # fmt: skip


@pytest.mark.parametrize(("method", "quantize"), zip(METHODS, ("nf4", "int8", "int8", "nf4"), strict=True))
def test_every_adapter_trains_resumes_its_numbers_and_answers(home, quantize, method):
    experiment = rankwise.Experiment(
        model={"name": str(home), "quantize": quantize}, data={"path": "rows.jsonl", "held_out": 2}, run="small",
        adapter=METHODS[method], training={"steps": 12, "batch_size": 4, "learning_rate": 0.02},
    )  # fmt: skip
    trained = rankwise.train(experiment)
    results = trained.manifest.results
    assert results.validation_loss_after < results.validation_loss_before
    assert trained.manifest.base_model.quantization == quantize
    again = rankwise.evaluate("small", forgetting=False)
    assert again.tuned.metrics["loss"].value == pytest.approx(results.validation_loss_after, rel=1e-3)


def test_a_classifier_trains_over_a_quantised_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder_folder(tmp_path / "encoder")
    write_rows("rows.jsonl", labelled(24))
    for method in (LoraConfig(rank=4), HeadConfig()):
        trained = rankwise.train(rankwise.Experiment(
            model={"name": "encoder", "quantize": "int8"}, data="rows.jsonl", run=method.method, adapter=method,
            training={"steps": 4, "batch_size": 4},
        ))  # fmt: skip
        assert trained.manifest.base_model.quantization == "int8"


def test_every_weight_cannot_learn_in_fewer_bits():
    with pytest.raises(RankwiseError, match=r'"model.quantize" is nf4, but full fine-tuning'):
        rankwise.Experiment(
            model={"name": "any", "quantize": "nf4"}, data="rows.jsonl", run="small", adapter=FullConfig()
        )  # pyright: ignore[reportArgumentType]


def test_resident_weights_are_a_quarter_and_a_half(folders):
    full = loaded(folders["llama"], "none", "bfloat16")
    sizes = {"none": 0, "nf4": 0, "int8": 0}
    for quantize in sizes:
        module = full if quantize == "none" else loaded(folders["llama"], quantize, "bfloat16")
        sizes[quantize] = sum(
            stored_bytes(part.weight) for part in module.model.layers.modules() if type(part) is nn.Linear
        )
    assert sizes["nf4"] < 0.27 * sizes["none"] and sizes["int8"] < 0.54 * sizes["none"]
