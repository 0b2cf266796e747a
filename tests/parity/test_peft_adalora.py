"""What peft trains as AdaLoRA and saves, we read as plain LoRA: the same logits, or a refusal by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import tiny_model
from rankwise.adapters.formats.peft import CONFIG, WEIGHTS, read_peft
from rankwise.adapters.lora import LoRA
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.errors import RankwiseError

IDS = torch.arange(48).reshape(2, 24) % 96
LEAVES = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"], "neox": ["query_key_value"]}
STEPS, FINAL = 10, 3


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(architecture: str, folder: Path, *, alpha: float = 8, steps: int = STEPS, allocate: bool = True) -> Any:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AdaLoraConfig(
            init_r=6, target_r=2, tinit=1, tfinal=FINAL, deltaT=1, total_step=STEPS, lora_alpha=alpha,  # pyright: ignore
            target_modules=LEAVES[architecture], lora_dropout=0.1, task_type="CAUSAL_LM",
        )  # fmt: skip
        model = get_peft_model(tiny_model(architecture), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
    model.train()
    for step in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        if allocate:
            model.base_model.update_and_allocate(step)  # pyright: ignore
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return model


def assert_alike(found: Tensor, wanted: Tensor, base: Tensor) -> None:
    scale = wanted.abs().max()
    assert (wanted - base).abs().max() > 1e-3 * scale, "an adapter that changes nothing would prove nothing"
    assert (found - wanted).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize(
    ("architecture", "allocate", "alpha"),
    [
        ("llama", True, 8), ("llama", False, -3), ("gpt2", True, 0), ("gpt2", False, 8), ("neox", True, -3),
        ("neox", False, 0),
    ],
)  # fmt: skip
def test_a_finished_adalora_of_peft_has_the_same_logits_here(
    architecture: str, allocate: bool, alpha: float, tmp_path: Path
) -> None:
    theirs = trained(architecture, tmp_path, alpha=alpha, allocate=allocate)
    assert bool(json.loads((tmp_path / CONFIG).read_text())["rank_pattern"]) == allocate
    model = tiny_model(architecture)
    base = logits(model)
    adapters = read_peft(model, tmp_path).adapters()
    assert all(type(adapter) is LoRA and adapter.rank > 0 for adapter in adapters.values())
    assert_alike(logits(model.eval()), logits(theirs), base)
    if alpha > 0:  # with alpha <= 0 peft itself reads another scale than it has trained with: what is left of each rank
        again = PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
        assert_alike(logits(model), logits(again), base)


def test_the_change_of_each_layer_is_peft_s_to_rounding_epsilon_and_all(tmp_path: Path) -> None:
    theirs = trained("llama", tmp_path)
    for path, adapter in read_peft(tiny_model("llama"), tmp_path).adapters().items():
        wanted = theirs.base_model.model.get_submodule(path).get_delta_weight("default").detach()
        # 1e-5 beside init_r is 1.7e-6 of it
        assert torch.linalg.norm(adapter.delta().detach() - wanted) <= 5e-7 * torch.linalg.norm(wanted)


def test_filters_of_a_convolution_come_over(tmp_path: Path) -> None:
    def host() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)).eval()

    config = AdaLoraConfig(init_r=3, lora_alpha=5, total_step=9, target_modules=["0", "2"], init_lora_weights=False)
    theirs = get_peft_model(host(), config).eval()
    theirs.save_pretrained(tmp_path)
    model, images = host(), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        base, wanted = model(images), theirs(images)
        read_peft(model, tmp_path)
        assert_alike(model(images), wanted, base)


def test_one_that_was_saved_while_ranks_were_still_moving_is_what_peft_reads(tmp_path: Path) -> None:
    # between two decisions strengths have grown again in rows that saving leaves out
    trained("llama", tmp_path, steps=STEPS - FINAL - 2)
    model = tiny_model("llama")
    base = logits(model)
    read_peft(model, tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    assert_alike(logits(model), logits(again), base)


def test_layers_that_were_left_no_rank_are_left_out(tmp_path: Path) -> None:
    trained("llama", tmp_path)
    pattern = json.loads((tmp_path / CONFIG).read_text())["rank_pattern"]
    left = {key.removesuffix(".lora_E"): sum(rows) for key, rows in pattern.items()}
    assert 0 in left.values(), "the budget is small enough that some layer has none"
    adapters = read_peft(tiny_model("llama"), tmp_path).adapters()
    assert {path: adapter.rank for path, adapter in adapters.items()} == {path: r for path, r in left.items() if r}


Q = "base_model.model.model.layers.0.self_attn.v_proj"
NAME = "model.layers.0.self_attn.v_proj.lora_E"
Breaking = Callable[[dict[str, Any], dict[str, Tensor]], object]


def config(**changes: Any) -> Breaking:
    return lambda settings, tensors: settings.update(changes)


def add(key: str, value: Tensor) -> Breaking:
    return lambda settings, tensors: tensors.update({key: value})


def pattern(change: Callable[[dict[str, list[Any]]], object]) -> Breaking:
    return lambda settings, tensors: change(settings["rank_pattern"])


BROKEN: dict[str, tuple[Breaking, str]] = {
    "a base weight": (
        add("base_model.model.model.norm.weight", torch.full((32,), 9.0)),
        "must not contain other weights",
    ),
    "no strengths": (lambda s, t: t.pop(f"{Q}.lora_E"), "has only lora_A and lora_B"),
    "strengths alone": (lambda s, t: (t.pop(f"{Q}.lora_A"), t.pop(f"{Q}.lora_B")), "has only lora_E"),
    "strengths of another shape": (lambda s, t: t.update({f"{Q}.lora_E": t[f"{Q}.lora_E"].T.contiguous()}), "needs"),
    "a row too many": (add(f"{Q}.lora_A", torch.zeros(6, 32)), "needs"),
    "a pattern that is too short": (pattern(lambda p: p[NAME].pop()), "5 entries, but init_r is 6"),
    "a pattern with more rows left": (pattern(lambda p: p.update({NAME: [True] * 6})), "but rank 6"),
    "no pattern where rows are missing": (config(rank_pattern=None), "but rank 6"),
    "a pattern for nothing": (pattern(lambda p: p.update({"model.norm.lora_E": [True] * 6})), "no weights in the file"),
    "a pattern by no strengths": (pattern(lambda p: p.update({"q_proj": [True] * 6})), "no weights in the file"),
    "a pattern of numbers": (pattern(lambda p: p.update({NAME: [1] * 6})), "rank_pattern"),
    "a rank of another start": (add(f"{Q}.ranknum", torch.tensor([4.0])), "differs from init_r, which is 6"),
    "DoRA": (config(use_dora=True), '"use_dora" is true'),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adalora")
    trained("llama", folder)
    return folder


def changed(saved: Path, folder: Path, *breakings: Breaking) -> None:
    settings, tensors = json.loads((saved / CONFIG).read_text()), load_file(saved / WEIGHTS)
    for breaking in breakings:
        breaking(settings, tensors)
    (folder / CONFIG).write_text(json.dumps(settings))
    save_file(tensors, folder / WEIGHTS)


def refused(folder: Path) -> str:
    model = tiny_model("llama")
    with pytest.raises(RankwiseError) as caught:
        read_peft(model, folder)
    assert not any(isinstance(module, AdapterWrapper) for module in model.modules())
    return str(caught.value)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_is_refused_by_name(case: str, saved: Path, tmp_path: Path) -> None:
    breaking, said = BROKEN[case]
    changed(saved, tmp_path, breaking)
    assert said in refused(tmp_path)


def test_several_problems_are_told_at_once(saved: Path, tmp_path: Path) -> None:
    changed(
        saved, tmp_path, BROKEN["no strengths"][0], BROKEN["a pattern by no strengths"][0], BROKEN["a base weight"][0]
    )
    told = refused(tmp_path)
    assert (
        "has only lora_A and lora_B" in told and "no weights in the file" in told and "must not contain other" in told
    )


def test_one_that_has_no_rank_at_all_is_refused(saved: Path, tmp_path: Path) -> None:
    def emptied(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        settings["rank_pattern"] = {key: [False] * 6 for key in settings["rank_pattern"]}
        for key, tensor in list(tensors.items()):
            tensors[key] = (tensor[:, :0] if key.endswith("lora_B") else tensor[:0]).contiguous()

    changed(saved, tmp_path, emptied)
    assert "changes nothing" in refused(tmp_path)


@pytest.mark.parametrize(
    "same",
    [
        add(f"{Q}.ranknum", torch.tensor([6.0])),
        config(use_rslora=True, alpha_pattern={"down_proj": 99}),
        lambda settings, tensors: settings.update(
            rank_pattern={f"base_model.model.{key}.default": rows for key, rows in settings["rank_pattern"].items()}
        ),
    ],
    ids=["the rank at the start", "what has no effect in peft", "names with prefix and adapter"],
)
def test_what_changes_nothing_is_passed_over(same: Breaking, saved: Path, tmp_path: Path) -> None:
    changed(saved, tmp_path, same)
    one, other = tiny_model("llama"), tiny_model("llama")
    read_peft(one, saved)
    read_peft(other, tmp_path)
    assert torch.equal(logits(one), logits(other))
