"""One law for every family of decoders: it learns, is stored, comes back, is taken out, merged, and read by PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

import rankwise
from kit.decoder_families import DECODERS, decoder_model, save_decoder
from rankwise.adapters.base_layers import split_of
from rankwise.adapters.formats.peft import read_peft
from rankwise.adapters.set import merge
from rankwise.config.adapters import AdaLora, LoraConfig
from rankwise.errors import TargetError
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.inject import inject
from rankwise.planning.parameters import target_notes
from rankwise.planning.shape import shape_from_json, shape_to_json
from rankwise.runs.records import StatusMessage, WarningMessage

NEAR = 1e-5
"""The largest difference of logits, as a share of the largest."""
STEPS = 5
FUSED_QKV = [name for name, kind in DECODERS.items() if kind.qkv]
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
MIXTURES = [name for name, kind in DECODERS.items() if kind.mixture]
METHODS = {
    "lora": LoraConfig(rank=4),
    "adalora": AdaLora(budget=4, warmup=0.2, final=0.2),
    "experts": LoraConfig(rank=4, targets=("all-linear", *EXPERTS)),
}
ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "the quick brown fox"}]}
    for n in range(8)
]


def logits(model: nn.Module) -> Tensor:
    ids = torch.arange(60).reshape(3, 20) * 7 % 300
    with torch.no_grad():
        return model(input_ids=ids).logits


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def in_float64(model: nn.Module) -> nn.Module:
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product of torch has no float64
    return model.double()


def fresh(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "adalora" if name in FUSED_QKV else "experts" if name in MIXTURES[1:] else "lora") for name in DECODERS],
)
def test_a_family_learns_and_its_adapter_is_the_same_everywhere(
    name: str, method: str, hub_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with one method: AdaLoRA where a layer is several, experts where there are some."""
    monkeypatch.chdir(tmp_path)
    folder = save_decoder(name, hub_tokenizer, tmp_path / "model")
    base = logits(fresh(folder))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    events: list[object] = []
    training = rankwise.TrainingConfig(steps=STEPS, batch_size=len(ROWS), learning_rate=0.02, schedule="constant")
    asked = rankwise.Experiment(
        model={"name": str(folder), "dtype": "float32"}, data="rows.jsonl", adapter=METHODS[method],
        training=training, run="family",
    )  # fmt: skip
    run = rankwise.train(asked, callback=events.append)
    losses = [row["loss"] for row in run.metrics if row["kind"] == "step"]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.1
    assert not [event.text for event in events if isinstance(event, WarningMessage)]
    sentences = [event.text for event in events if isinstance(event, StatusMessage)]
    assert run.manifest.backend == ("fused" if DECODERS[name].fused else "eager")
    assert any(f"using the {run.manifest.backend} backend" in text for text in sentences)
    left_out = DECODERS[name].mixture and method != "experts"
    assert any("they get no adapter" in text for text in sentences) == left_out

    trained = logits(run.tuned.model.module)
    assert apart(trained, base) > 0.01, "an adapter that changes nothing would prove nothing"
    adapter = run.folder / "adapter"
    again = fresh(folder)
    adapters = read_peft(again, adapter)
    assert torch.equal(logits(again), trained), "reloaded"
    linear = {path for path, one in fresh(folder).named_modules() if isinstance(one, nn.Linear | Conv1D)}
    experts = {path for path in adapters.layers if path.endswith(EXPERTS)}
    assert len(experts) == (6 if method == "experts" else 0)
    assert method == "adalora" or set(adapters.layers) == (linear | experts) - {"lm_head"}
    theirs = PeftModel.from_pretrained(fresh(folder), adapter).eval()
    assert apart(logits(theirs), trained) <= NEAR, "PEFT"
    with adapters.base():
        assert torch.equal(logits(again), base), "switched off"
    exact = read_peft(in_float64(fresh(folder)), adapter)
    adapted = logits(exact.model)
    assert apart(logits(merge(exact)), adapted) <= NEAR, "merged"
    assert torch.equal(logits(adapters.remove()), base), "removed"


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_in_one_parameter_are_left_out_by_name(name: str, hub_tokenizer: PreTrainedTokenizerFast) -> None:
    """A training says it and how to adapt them, a plan says the same, and the module around them is no target."""
    model, kind = decoder_model(name, hub_tokenizer), DECODERS[name]
    adapters = inject(model, LoraConfig(rank=2))
    assert {path.rpartition(".")[2] for path in adapters.layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    (note,) = adapters.notes
    assert note.startswith("6 parameters each hold the weights of all experts of a block (")
    assert "model.layers.0.mlp.experts.gate_up_proj" in note and "they get no adapter" in note
    assert note.endswith("Add experts.gate_up_proj, experts.down_proj to the targets to adapt each expert")
    adapters.remove()
    settings = {"model_type": kind.model_type, "vocab_size": len(hub_tokenizer)} | kind.settings
    shape = shape_of_config(settings, name, "config.json")
    assert target_notes(shape, LoraConfig(rank=2)) == [note]
    assert target_notes(shape_from_json(shape_to_json(shape), name), LoraConfig(rank=2)) == [note]
    with pytest.raises(TargetError, match=r"names a module around experts.*Name the parameters: experts\.gate_up_proj"):
        inject(model, LoraConfig(rank=2, targets=("experts",)))
    for target, count in (("gate_up_proj", 3), (r"model\.layers\.1\.mlp\.experts\.down_proj", 1)):
        spec = LoraConfig(rank=2, targets=(target,))
        adapters = inject(model, spec)
        assert len(adapters.layers) == count and adapters.notes == target_notes(shape, spec) == []
        adapters.remove()


@torch.no_grad()
@pytest.mark.parametrize("name", FUSED_QKV)
def test_query_key_and_value_of_one_layer_are_known(name: str, hub_tokenizer: PreTrainedTokenizerFast) -> None:
    """So that AdaLoRA gives each of them ranks of its own. Values of zero leave nothing of the attention but a bias;
    with keys of zero, queries do not matter; otherwise they do."""
    model = decoder_model(name, hub_tokenizer)
    path = next(path for path, _ in model.named_modules() if path.endswith(f".{DECODERS[name].qkv}"))
    layer, attention = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    outputs = len(weight)
    split = split_of(model, path, outputs)
    assert split is not None and split.names == ("q", "k", "v")
    q, k, v = split.rows
    assert sorted(torch.cat(split.rows).tolist()) == list(range(outputs)) and len(k) == len(v)
    seen: list[Tensor] = []
    attention.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))

    def attended() -> Tensor:
        logits(model)
        return seen.pop()

    def clear(rows: Tensor) -> None:
        weight[rows] = 0
        if layer.bias is not None:
            layer.bias[rows] = 0

    usual = attended()
    weight[q] *= 2
    assert apart(attended(), usual) > 1e-3
    clear(k)
    without_keys = attended()
    weight[q] *= 2
    assert torch.equal(attended(), without_keys) and apart(without_keys, usual) > 1e-3
    clear(v)
    nothing = attended()
    assert torch.equal(nothing, nothing[:1, :1].expand_as(nothing))
