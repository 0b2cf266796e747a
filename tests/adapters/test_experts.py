"""Stacked experts: factors of expert k change expert k alone, PEFT lays the same file likewise, and plans count them.

Hidden and inner widths are equal, so that a matrix that lies the wrong way round fits and only its numbers are wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from kit.decoder_families import DECODERS, save_decoder
from kit.interrupted import whole_and_resumed
from rankwise.adapters import experts as laid
from rankwise.adapters.formats import peft as written
from rankwise.adapters.formats import peft_reader as read
from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import read_peft, rewrite, write_peft
from rankwise.adapters.set import AdapterSet, merge
from rankwise.adapters.spectrum import spectra_of
from rankwise.adapters.targets import host_view
from rankwise.commands.train import train
from rankwise.config.adapters import AdaLora, LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.errors import AdapterError, TargetError
from rankwise.exporting.adapter_export import write_mlx
from rankwise.exporting.engine_rules import verdicts
from rankwise.exporting.merge import Order, export_merged
from rankwise.exporting.merging.as_adapter import combine
from rankwise.exporting.merging.inputs import Options
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.artifact import open_artifact
from rankwise.methods.inject import add_adapter, inject
from rankwise.planning.parameters import groups_of, parameters_of
from rankwise.runs.records import silent

MIXTURES = [name for name, kind in DECODERS.items() if kind.mixture]
BOTH = ("experts.gate_up_proj", "experts.down_proj")
SIZES = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "head_dim": 8, "vocab_size": 99}
COUNT = 3
TRANSPOSED_SINCE = (0, 19)
peft_as_today = pytest.mark.skipif(
    tuple(map(int, version("peft").split(".")[:2])) < TRANSPOSED_SINCE,
    reason="PEFT before 0.19 takes inputs for outputs where weights are (experts, outputs, inputs)",
)
NEAR = 1e-5
SAME = 1e-6
IDS = torch.arange(60).reshape(3, 20) * 7 % 99


def settings(name: str) -> dict[str, Any]:
    chosen = {"num_local_experts": COUNT, "num_experts": COUNT, "num_experts_per_tok": 2}
    own = DECODERS[name].settings | SIZES
    return {"model_type": DECODERS[name].model_type} | own | {key: value for key, value in chosen.items() if key in own}


def mixture(name: str) -> nn.Module:
    """Three experts, of which each token is sent to two."""
    torch.manual_seed(0)
    config: Any = CONFIG_MAPPING[DECODERS[name].model_type]
    model = AutoModelForCausalLM.from_config(
        config(initializer_range=0.2, **settings(name)), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.05)
    return model


@torch.no_grad()
def adapted(name: str, targets: tuple[str, ...] = BOTH, **others: Any) -> AdapterSet:
    adapters = inject(mixture(name), LoraConfig(rank=2, targets=targets, **others))
    torch.manual_seed(1)
    for factor in adapters.parameters():
        factor.copy_(torch.randn(factor.shape) * 0.2)
    return adapters


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
def factors_of_one_expert_change_it_alone(name: str, leaf: str) -> None:
    """Against the module's own code with W_k + s B_k A_k in the place of W_k."""
    adapters, expert, path = adapted(name), 1, "model.layers.0.mlp.experts"
    factors = {parameter: adapter.factors() for parameter, adapter in adapters.adapters().items()}
    for parameter, (_, B) in factors.items():
        for other in range(COUNT):
            if (parameter, other) != (f"{path}.{leaf}", expert):
                B[other].zero_()
    module: Any = adapters.model.get_submodule(path)
    x, shares = torch.randn(9, SIZES["hidden_size"]), torch.rand(9, 1) + 0.5
    chosen = torch.tensor([0, 1, 2, 1, 1, 0, 2, 2, 1])[:, None]
    changed = module(x, chosen, shares)
    with adapters.base():
        base = module(x, chosen, shares)
    own = chosen[:, 0] == expert
    assert apart(changed[~own], base[~own]) <= SAME, "tokens of other experts"
    assert apart(changed[own], base[own]) > 0.01
    A, B = factors[f"{path}.{leaf}"]
    delta = adapters.adapters()[f"{path}.{leaf}"].scale * B[expert] @ A[expert]
    host = module.base_layer
    getattr(host, leaf)[expert] += delta.T if name == "gpt-oss" else delta
    assert apart(changed, host(x, chosen, shares)) <= SAME, "by hand"


@pytest.mark.parametrize("leaf", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("name", MIXTURES)
def test_factors_of_one_expert_change_it_alone(name: str, leaf: str) -> None:
    factors_of_one_expert_change_it_alone(name, leaf)


def of_the_next_expert(of: Callable[..., Any], part: nn.Module) -> Any:
    whole = of(part)
    turned = tuple(tuple(factor[1:] + factor[:1] for factor in pair) for pair in whole.factors)
    return laid._Projection(whole.weights, whole.biases, whole.transposed, turned)


@pytest.mark.parametrize("planted", ["next expert", "other way round", "without scale"])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_law_sees_a_planted_fault(name: str, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted == "next expert":
        monkeypatch.setattr(laid._Projection, "of", partial(of_the_next_expert, laid._Projection.of))
    elif planted == "other way round":
        monkeypatch.setattr(laid, "on_linear", lambda x, A, B: x @ (B @ A if len(B) == A.shape[1] else A.T @ B.T))
    else:
        monkeypatch.setattr(laid, "_scaled", lambda adapter: (adapter.A, adapter.B))
    with pytest.raises(AssertionError):
        factors_of_one_expert_change_it_alone(name, "down_proj")


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_without_tokens_get_no_gradient_and_frozen_weights_none(name: str) -> None:
    adapters, path = adapted(name), "model.layers.1.mlp.experts"
    module: Any = adapters.model.get_submodule(path)
    x = torch.randn(4, SIZES["hidden_size"], requires_grad=True)
    module(x, torch.tensor([[2, 0]] * 4), torch.rand(4, 2)).square().sum().backward()
    for leaf in ("gate_up_proj", "down_proj"):
        for factor in adapters.adapters()[f"{path}.{leaf}"].parameters():
            assert factor.grad is not None and not factor.grad[1].any()
            assert factor.grad[0].any() and factor.grad[2].any()
        assert getattr(module.base_layer, leaf).grad is None
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize("name", MIXTURES)
def test_nothing_as_large_as_the_weights_is_kept_for_the_backward_pass(name: str) -> None:
    module: Any = adapted(name).model.get_submodule("model.layers.0.mlp.experts")
    weights = {weight.untyped_storage().data_ptr() for weight in module.base_layer.parameters()}
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            kept.append(value.untyped_storage().nbytes())
        return value

    x = torch.randn(4, SIZES["hidden_size"], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        module(x, torch.tensor([[2, 0]] * 4), torch.rand(4, 2))
    assert kept and max(kept) < min(weight.nbytes for weight in module.base_layer.parameters() if weight.dim() == 3)


@pytest.mark.parametrize("name", MIXTURES)
def test_untrained_scaled_merged_removed_and_two_at_once(name: str) -> None:
    base = logits(mixture(name))
    adapters = inject(mixture(name), LoraConfig(rank=2, targets=BOTH))
    assert apart(logits(adapters.model), base) <= SAME, "untrained"
    adapters = adapted(name)
    tuned = logits(adapters.model)
    assert apart(tuned, base) > 0.1
    with adapters.scaled(0.0):
        assert apart(logits(adapters.model), base) <= SAME
    with adapters.base():
        assert torch.equal(logits(adapters.model), base)
    add_adapter(adapters, LoraConfig(rank=3, targets=("experts.down_proj",)), "second", seed=5)
    adapters.activate("default", "second")
    assert apart(logits(adapters.model), tuned) <= SAME, "the second is untrained"
    parameters = [path for path, _ in mixture(name).named_parameters()]
    removed = adapters.remove()
    assert torch.equal(logits(removed), base) and [path for path, _ in removed.named_parameters()] == parameters
    merged = merge(adapted(name))
    assert apart(logits(merged), tuned) <= NEAR and [path for path, _ in merged.named_parameters()] == parameters


def ours_and_theirs(name: str, folder: Path, adapters: AdapterSet) -> None:
    tuned = logits(adapters.model)
    write_peft(adapters, folder, base_model="base")
    again = read_peft(mixture(name), folder)
    assert torch.equal(logits(again.model), tuned), "reloaded"
    assert apart(logits(PeftModel.from_pretrained(mixture(name), folder).eval()), tuned) <= NEAR, "PEFT"  # pyright: ignore[reportArgumentType]


@peft_as_today
@pytest.mark.parametrize("targets", [BOTH, BOTH[:1], ("q_proj", "experts.down_proj"), (r"model\.layers\.[02].*_proj",)])
@pytest.mark.parametrize("name", MIXTURES)
def test_peft_lays_what_we_write(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    ranks = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"gate_up_proj": 5.0}} if targets == BOTH else {}
    ours_and_theirs(name, tmp_path / "adapter", adapted(name, targets, **ranks))


@peft_as_today
@pytest.mark.parametrize("name", MIXTURES)
def test_parity_sees_factors_in_another_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways wrong agree with each other, and not with PEFT."""

    def apart_by_expert(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        return A.view(len(A) // rank, rank, -1), B.view(len(B), -1, rank).transpose(0, 1).contiguous()

    monkeypatch.setattr(written, "together", lambda A, B: (A.flatten(0, 1), B.transpose(0, 1).flatten(1)))
    monkeypatch.setattr(read, "apart", apart_by_expert)
    with pytest.raises(AssertionError, match="PEFT"):
        ours_and_theirs(name, tmp_path / "adapter", adapted(name))


@peft_as_today
@pytest.mark.parametrize(
    ("modules", "parameters", "others"),
    [
        (["q_proj"], ["experts.gate_up_proj", "experts.down_proj"], {}),
        ([], ["down_proj"], {}),
        (
            ["q_proj", "v_proj"], ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            {"rank_pattern": {"experts.down_proj": 3}, "alpha_pattern": {"gate_up_proj": 4}, "use_rslora": True},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", MIXTURES)
def test_we_lay_what_peft_writes(
    name: str, modules: list[str], parameters: list[str], others: dict[str, Any], tmp_path: Path
) -> None:
    config = PeftLora(r=2, lora_alpha=6, target_modules=modules, target_parameters=parameters, **others)
    theirs: Any = get_peft_model(mixture(name), config)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(4)
    with torch.no_grad():
        for key, value in theirs.named_parameters():
            if "lora_" in key:
                value.copy_(torch.randn_like(value) * 0.2)
    expected = logits(theirs.eval())
    theirs.save_pretrained(tmp_path)
    ours = read_peft(mixture(name), tmp_path)
    assert apart(logits(ours.model), expected) <= NEAR
    alone = read_adapter(tmp_path)
    assert alone.ranks == {path: part.rank for path, part in ours.adapters().items()}, "the same without a model"
    rewrite(alone.portable(), tmp_path / "portable", {})
    portable = PeftModel.from_pretrained(mixture(name), tmp_path / "portable").eval()  # pyright: ignore[reportArgumentType]
    assert apart(logits(portable), expected) <= NEAR


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    write_peft(adapted("mixtral"), tmp_path / "adapter", base_model="base")
    config = tmp_path / "adapter" / "adapter_config.json"
    sound = json.loads(config.read_text())
    modules = host_view(mixture("mixtral"))
    for change, reason in (
        ({"r": 1}, r"rank 1 on this parameter needs \(3, 32\) and \(64, 3\)"),
        ({"target_parameters": [*BOTH, "gate.weight"]}, 'the target parameter "gate.weight" has no factors of experts'),
        ({"target_parameters": ["experts.down_proj"]}, r"base_layer.* is for a layer that this model does not have"),
        ({"target_parameters": None}, "is for a .*, which cannot have an adapter"),
    ):
        config.write_text(json.dumps(sound | change))
        with pytest.raises(AdapterError, match=reason):
            read_adapter(tmp_path / "adapter", modules)
    write_peft(adapted("mixtral", BOTH[1:]), tmp_path / "square", base_model="base")
    square = tmp_path / "square" / "adapter_config.json"
    square.write_text(json.dumps(json.loads(square.read_text()) | {"peft_version": "0.18.1"}))
    with pytest.raises(AdapterError, match=r"PEFT before 0\.19 took their inputs for outputs"):
        read_adapter(tmp_path / "square", modules)
    config.write_text(json.dumps(sound))
    file, older = tmp_path / "adapter" / "adapter_model.safetensors", {}
    for key, value in load_file(file).items():
        older[key.replace("lora_A", "X").replace("lora_B", "lora_A").replace("X", "lora_B")] = value.T.contiguous()
    save_file(older, file)
    with pytest.raises(AdapterError, match=r"PEFT before 0\.19 took their inputs for outputs"):
        read_adapter(tmp_path / "adapter", modules)


def test_a_name_that_other_layers_have_too_leaves_the_experts_out() -> None:
    sizes = DECODERS["qwen3-moe"].settings | SIZES | {"shared_expert_intermediate_size": 24, "num_experts": COUNT}
    config: Any = CONFIG_MAPPING["qwen2_moe"]
    model = AutoModelForCausalLM.from_config(config(**sizes, decoder_sparse_step=1))
    adapters = inject(model, LoraConfig(rank=2, targets=("down_proj",)))
    assert all(path.endswith("shared_expert.down_proj") for path in adapters.layers) and len(adapters.layers) == 3
    (note,) = adapters.notes
    assert note.startswith("3 parameters each hold") and "Add experts.down_proj to the targets" in note
    adapters.remove()
    adapters = inject(model, LoraConfig(rank=2, targets=("down_proj", "experts.down_proj")))
    assert len(adapters.layers) == 6 and not adapters.notes


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LoraConfig(targets=BOTH, dropout=0.1), "there is no adapter.dropout=0.1"),
        (LoraConfig(targets=BOTH, start="eva"), "there is no adapter.start=eva"),
        (LoraConfig(targets=BOTH, dora=True), "dora is for linear layers"),
        (AdaLora(targets=BOTH), "there is no adapter.method=adalora"),
        (LoraConfig(targets=("experts",)), "Name the parameters: experts.gate_up_proj, experts.down_proj"),
        (LoraConfig(targets=BOTH, layers=(7,)), "none in blocks 7"),
    ],
)
def test_what_does_not_fit_experts_is_refused_by_name(spec: LoraConfig | AdaLora, reason: str) -> None:
    with pytest.raises(TargetError, match=reason):
        inject(mixture("mixtral"), spec)


def test_experts_of_a_models_own_code_are_left_out_by_name() -> None:
    sizes = DECODERS["mixtral"].settings | SIZES | {"num_local_experts": COUNT, "intermediate_size_mlp": 32}
    config: Any = CONFIG_MAPPING["llama4_text"]
    model = AutoModelForCausalLM.from_config(config(**sizes))
    adapters = inject(model, LoraConfig(rank=2))
    assert any("which the model computes by code of its own: they get no adapter" in note for note in adapters.notes)
    adapters.remove()
    with pytest.raises(TargetError, match=r"names experts, over which no adapter can be laid.*own: .*experts\."):
        inject(model, LoraConfig(rank=2, targets=("experts.gate_up_proj",)))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_plan_counts_them_and_their_file(name: str, tmp_path: Path) -> None:
    adapters, shape = adapted(name, ("all-linear", *BOTH)), shape_of_config(settings(name), name, "config.json")
    counted = parameters_of(shape, LoraConfig(rank=2, targets=("all-linear", *BOTH)))
    assert counted.trainable == sum(factor.numel() for factor in adapters.parameters())
    assert [one.layer.path for one in counted.adapted] == list(adapters.layers)
    write_peft(adapters, tmp_path / "adapter", base_model="base")
    assert counted.file_bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    (group,) = (one for one in groups_of(shape) if one.names == ("gate_up_proj",))
    assert (group.shape, group.count) == ("3 x 32 -> 64", 3)


def test_other_formats_and_engines_say_that_they_have_no_place_for_them(tmp_path: Path) -> None:
    write_peft(adapted("mixtral"), tmp_path / "adapter", base_model="base")
    weights = read_adapter(tmp_path / "adapter")
    right = [name for name, reason in verdicts(weights).items() if reason is None]
    assert right == ["PEFT", "transformers"] and "(target_parameters)" in str(verdicts(weights)["vLLM"])
    with pytest.raises(AdapterError, match="holds all experts of a block"):
        write_mlx(weights.portable(), tmp_path / "mlx", {})
    assert len(spectra_of(weights)) == 6 * COUNT, "each expert has a spectrum"


@pytest.fixture
def experiment(
    hub_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Experiment]:
    """A training of three steps, over a mixture whose files have each expert's weights in tensors of their own."""
    monkeypatch.chdir(tmp_path)
    save_decoder("qwen3-moe", hub_tokenizer, tmp_path / "base")
    talks = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "a fox"}] for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))

    def of(run: str, **adapter: Any) -> Experiment:
        return Experiment.model_validate({
            "model": {"name": str(tmp_path / "base"), "dtype": "float32"}, "data": "rows.jsonl", "run": run,
            "adapter": {"method": "lora", "rank": 2, "targets": BOTH, **adapter},
            "training": {"steps": 4, "batch_size": 2, "learning_rate": 0.02, "checkpoint_steps": 1},
        })  # fmt: skip

    return of


@pytest.mark.slow
def test_a_training_is_resumed_continued_and_exported_merged(experiment: Callable[..., Experiment]) -> None:
    whole, resumed = whole_and_resumed(experiment, 2)
    assert whole == resumed
    run = train(experiment("next").model_copy(update={"adapter": LoraConfig(start_from="run-whole")}))
    assert read_adapter(run.result).ranks == read_adapter(Path("runs/run-whole/adapter")).ranks
    artifact = open_artifact("run-whole", silent)
    merged = export_merged(Order(artifact, Path("merged"), "merged", dtype="float32"))
    assert merged.logits_difference <= NEAR and (merged.logits_change or 0) > 0.01
    with pytest.raises(AdapterError, match="a merge file by file has no place for"):
        combine(Options(["run-whole"]), Path("again"), silent)
