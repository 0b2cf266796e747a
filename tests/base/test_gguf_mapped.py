"""A model over the blocks of a mapped GGUF file computes and learns what it does over their converted numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from kit.gguf_models import KINDS, as_gguf, layers_of, model_in
from kit.planning_models import shape_of
from rankwise.base.gguf import mapped as gguf_mapped
from rankwise.base.gguf.conversion import converted
from rankwise.base.gguf.header import USABLE, config_of_gguf, read_gguf_header
from rankwise.base.gguf.mapped import gguf_folder, gguf_tensors, quantization_of, tokenizer_folder
from rankwise.config.adapters import LoraConfig
from rankwise.config.experiment import Planned
from rankwise.errors import ModelError
from rankwise.forward.plan import plan
from rankwise.kernels.quantized.given_back import give_back_after_use
from rankwise.kernels.quantized.tensor import QuantizedTensor, stored_bytes
from rankwise.methods.inject import inject
from rankwise.planning.stored_weights import packed_bytes, rest_bytes
from rankwise.runs.records import StatusMessage, silent

IDS = torch.arange(80).reshape(2, 40) + 5
READ = [kind for kind in KINDS if kind != "smollm3"]
CONVERTED = [kind for kind in READ if kind != "phi3"]
"""transformers reads no SmolLM3 from GGUF, and no Phi 3 with a small vocabulary."""
AS_CONVERTED = {"qwen3": {"head_dim": 128}, "gpt2": {"n_positions": 1024}}
"""The only sizes that the conversion reads."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The file of a tiny random model by architecture and type, written once."""
    written: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("gguf")

    def file_of(kind: str, dtype: str = "q4_1") -> Path:
        file = folder / f"{kind}-{dtype}.gguf"
        if (kind, dtype) not in written:
            base = model_in(folder / file.stem / "base", kind, **AS_CONVERTED.get(kind, {}))
            written[kind, dtype] = as_gguf(base, file, dtype)
        return written[kind, dtype]

    return file_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path_factory.getbasetemp() / "mapped-cache"))


def read(file: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, Tensor]]:
    """The folder with its settings, and its weights."""
    folder = gguf_folder(file, silent)
    assert folder is not None
    return folder, gguf_tensors(file, folder, dtype)


def as_it_lies(file: Path, dtype: torch.dtype = torch.float32) -> Any:
    folder, state = read(file, dtype)
    config = AutoConfig.from_pretrained(folder)
    model, report = getattr(transformers, config.architectures[0]).from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    assert not any(report.values()), report
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", CONVERTED)
def test_each_architecture_is_loaded_whole_and_computes_what_the_converted_folder_does(files, kind):
    file = files(kind)
    ours, theirs = as_it_lies(file), AutoModelForCausalLM.from_pretrained(converted(file, silent), dtype=torch.float32)
    wanted = logits(theirs)
    assert (logits(ours) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    packed = {name for name, one in ours.named_parameters() if isinstance(one.data, QuantizedTensor)}
    assert packed == {name for name, one in theirs.named_parameters() if one.ndim == 2 and "wpe" not in name}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q4_0", "q5_0", "q5_1", "q8_0"])
def test_each_type_that_is_written_is_read(files, dtype):
    file = files("llama3", dtype)
    wanted = logits(AutoModelForCausalLM.from_pretrained(converted(file, silent), dtype=torch.float32))
    assert (logits(as_it_lies(file)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", READ)
def test_each_architecture_is_read_to_the_shapes_and_numbers_of_the_model_that_was_written(tmp_path, kind):
    """With the model's own settings, since transformers' reader ignores some of the file."""
    base = model_in(tmp_path / "base", kind)
    folder, state = read(as_gguf(base, tmp_path / "tiny.gguf", "float32"))
    wanted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    numbers = {name: one.detach() for name, one in wanted.named_parameters()}
    assert numbers.keys() == state.keys()
    assert all(torch.allclose(state[name], one, rtol=0, atol=1e-6) for name, one in numbers.items())
    assert AutoConfig.from_pretrained(folder).max_position_embeddings == 256


@pytest.mark.parametrize("kind", CONVERTED)
def test_the_folder_without_weights_is_that_of_the_conversion(files, kind):
    """Whose tokenizer and settings transformers reads from the whole file."""
    file = files(kind)
    mapped, folder = read(file)[0], converted(file, silent)
    assert not list(mapped.glob("*.safetensors"))
    configs = [AutoConfig.from_pretrained(one).to_dict() for one in (mapped, folder)]
    of_file = config_of_gguf(read_gguf_header(file), file)
    for config in configs:
        for name in ("dtype", "_name_or_path", *(name for name in of_file if name != "pad_token_id")):
            config.pop(name, None)
    assert configs[0] == configs[1]
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    for name in names:
        assert (mapped / name).read_text() == (folder / name).read_text()
    assert [(tokenizer_folder(file) / name).read_text() for name in names[:3]] == [
        (folder / name).read_text() for name in names[:3]
    ]
    assert quantization_of(read_gguf_header(file)).startswith("Q4_1")


def test_a_plan_counts_tokens_by_the_tokenizer_and_the_template_of_the_file(files, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{at}? " * at, "completion": "yes"}) + "\n" for at in range(1, 40)))
    file = files("qwen2")
    of_file, of_folder = (
        plan(Planned.model_validate({"model": {"name": str(name)}, "data": {"path": str(rows)}}))
        for name in (file, converted(file, silent))
    )
    assert of_file.rows.exact and of_file.rows.tokens == of_folder.rows.tokens
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes().replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenS"))
    unknown = plan(Planned.model_validate({"model": {"name": str(broken)}, "data": {"path": str(rows)}}))
    assert not unknown.rows.exact


def test_the_matrices_are_views_of_the_file(files):
    """All but queries and keys, whose rows are in another order, share the storage of the mapped file."""
    file = files("qwen2")
    _, state = read(file, torch.bfloat16)
    packed = [one for one in state.values() if isinstance(one, QuantizedTensor)]
    assert len({one.parts[0].untyped_storage().data_ptr() for one in packed}) == 1
    assert all(one.dtype == torch.bfloat16 for one in state.values())
    in_file = sum(one.n_bytes for one in gguf.GGUFReader(file).tensors)
    assert sum(map(stored_bytes, state.values())) <= in_file
    _, turned = read(files("llama"), torch.bfloat16)
    storages = {
        name.split(".")[-2]: one.parts[0].untyped_storage().nbytes()
        for name, one in turned.items()
        if isinstance(one, QuantizedTensor)
    }
    whole = files("llama").stat().st_size
    assert {name for name, size in storages.items() if size != whole} == {"q_proj", "k_proj"}


def adapted(model: Any, kind: str) -> list[Tensor]:
    """Random adapters on all layers; their tensors."""
    adapters = inject(model, LoraConfig(targets=layers_of(kind), rank=4, alpha=8.0))
    parameters = list(adapters.named_parameters().values())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in parameters:
            one.copy_(0.1 * torch.randn(one.shape, generator=generator))
    return parameters


def gradients(model: Any, parameters: list[Tensor]) -> list[Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [one.grad.clone() for one in parameters if one.grad is not None]


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 4
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_gradients_are_those_through_the_converted_numbers(files, kind):
    file = files(kind)
    ours, theirs = as_it_lies(file), AutoModelForCausalLM.from_pretrained(converted(file, silent), dtype=torch.float32)
    mine, others = adapted(ours, kind), adapted(theirs, kind)
    both = ((ours, mine), (theirs, others))
    for model, _ in both:
        model.train()
        model.config.use_cache = False
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    assert_near(*(gradients(*one) for one in both))
    for model, _ in both:  # an evaluation
        logits(model)
        model.train()
    assert_near(*(gradients(*one) for one in both))
    for model, _ in both:  # activation checkpointing
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_near(*(gradients(*one) for one in both))
    for model, _ in both:
        model.gradient_checkpointing_disable()
        model.to(torch.float64)
        model.to(torch.float32)
    assert any(isinstance(one.data, QuantizedTensor) for one in ours.parameters())
    first = [gradients(*one) for one in both]
    assert_near(*first)
    for parameters, given in zip((mine, others), first, strict=True):  # a step, and then the rows once more
        with torch.no_grad():
            for one, gradient in zip(parameters, given, strict=True):
                one -= 0.1 * gradient
    second = [gradients(*one) for one in both]
    assert_near(*second)
    assert (second[0][0] - first[0][0]).abs().max() > 1e-3 * first[0][0].abs().max()


def test_what_cannot_be_used_so_is_converted_and_that_is_said(files, monkeypatch):
    heard: list[Any] = []
    monkeypatch.setattr(gguf_mapped, "USABLE", USABLE - {"Q4_1"})
    assert gguf_folder(files("llama"), heard.append) is None
    (message,) = [one.text for one in heard if isinstance(one, StatusMessage)]
    assert message.startswith("llama-q4_1.gguf is not used as it lies but converted: ") and "Q4_1" in message
    monkeypatch.undo()
    monkeypatch.setattr(gguf_mapped, "ARCHITECTURES", {})
    assert gguf_folder(files("llama"), heard.append) is None
    assert "architecture 'llama'" in heard[-1].text


def test_a_damaged_file_is_refused_before_anything_is_written(files, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(files("llama").read_bytes()[:-40])
    with pytest.raises(ModelError, match="the file ends at"):
        read(damaged)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["q4_1", "q8_0"])
def test_a_plan_counts_the_bytes_that_a_file_takes(files, kind, dtype):
    file = files(kind, dtype)
    shape, parameters = shape_of(str(file)), {id(one): one for one in as_it_lies(file).parameters()}
    assert sum(map(stored_bytes, parameters.values())) == packed_bytes(shape, "file") + rest_bytes(shape, "file", 4)
    assert shape.file_bytes


def test_pages_of_a_file_that_are_given_back_are_read_again(files):
    model = as_it_lies(files("llama"))
    expected = logits(model)
    assert give_back_after_use(model) > 0
    assert torch.equal(logits(model), expected) and torch.equal(logits(model), expected)
