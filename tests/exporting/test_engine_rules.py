"""Thirty random adapters: every export is the adapter that PEFT has, and the rules flag exactly the engines that err.

The rules are restated here in a few lines and applied to the tensors as they lie in the file; PEFT's own change of each
layer is the truth.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import tiny_model
from rankwise.adapters.formats.peft import as_lora, read_peft, rewrite
from rankwise.adapters.formats.peft_reader import CONFIG, PREFIX, WEIGHTS, read_weights
from rankwise.adapters.set import merge
from rankwise.adapters.weights import AdapterWeights
from rankwise.errors import AdapterError
from rankwise.exporting import engine_rules
from rankwise.exporting.engine_rules import RULES, declared, factors_by_layer, verdicts
from rankwise.exporting.engines.vllm import RANKS

IDS = torch.arange(48).reshape(2, 24) % 96
KINDS = ("plain", "rslora", "ranks", "alphas", "both", "adalora", "pruned", "embedding", "conv1d", "dora")
CASES = [(kind, seed) for kind in KINDS for seed in range(3)]
ATTENTION, FEED = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


def settings_of(kind: str, chance: random.Random) -> Any:
    targets = [*ATTENTION, *(FEED if chance.random() < 0.5 else [])]
    if kind in ("adalora", "pruned"):
        common = {"init_r": chance.randint(2, 5), "total_step": 10, "tinit": 1, "tfinal": 2, "target_r": 2}
        return AdaLoraConfig(lora_alpha=chance.choice([4, 8, 13]), target_modules=targets, **common)
    if kind == "conv1d":
        targets = ["c_attn", "mlp.c_proj"]
    if kind == "embedding":
        targets = ["embed_tokens", *targets]
    patterns: dict[str, Any] = {}
    if kind in ("ranks", "both"):
        patterns["rank_pattern"] = {"q_proj": 3, r"model\.layers\.1\.self_attn\.o_proj": 2}
    if kind in ("alphas", "both"):
        patterns["alpha_pattern"] = {"(k|v)_proj": 20, "layers.0.self_attn.o_proj": 3}
    rank = chance.choice([4, 6, 8])
    alpha = 2 * rank if kind != "plain" else chance.choice([3, 2 * rank, rank])
    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, use_dora=kind == "dora", fan_in_fan_out=kind == "conv1d",
        use_rslora=kind == "rslora" or (kind == "both" and seeded(chance)), **patterns,
    )  # fmt: skip


def seeded(chance: random.Random) -> bool:
    return chance.random() < 0.5


@cache
def made(kind: str, seed: int) -> Any:
    """A model that peft adapted at random. AdaLoRA's is pruned as its end of training does."""
    chance = random.Random(f"{kind} {seed}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_model("gpt2" if kind == "conv1d" else "llama"), settings_of(kind, chance))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
                elif "magnitude" in name:
                    value.mul_(1.1)
        if kind == "pruned":
            prune(model, chance)
    return model.eval()


def prune(model: Any, chance: random.Random) -> None:
    initial = model.peft_config["default"].init_r
    paths = [name.removesuffix(".lora_E.default") for name, _ in model.base_model.model.named_parameters()
             if name.endswith("lora_E.default")]  # fmt: skip
    ranks = [0, *(chance.randint(1, initial) for _ in paths[1:])]
    pattern = {f"{path}.lora_E": [at < rank for at in range(initial)] for path, rank in zip(paths, ranks, strict=True)}
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")
    model.peft_config["default"].rank_pattern = pattern


def saved(kind: str, seed: int, folder: Path) -> AdapterWeights:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made(kind, seed).save_pretrained(folder, save_embedding_layers=False)
    return read_weights(folder)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def assert_alike(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(("kind", "seed"), [case for case in CASES if case[1] < 2])
def test_every_export_of_an_adapter_is_the_adapter(kind: str, seed: int, tmp_path: Path) -> None:
    weights, wanted, architecture = saved(kind, seed, tmp_path / "theirs"), logits(made(kind, seed)), "llama"
    architecture = "gpt2" if kind == "conv1d" else "llama"
    base = logits(tiny_model(architecture))
    assert (wanted - base).abs().max() > 1e-2 * wanted.abs().max(), (
        "an adapter that changes nothing would prove nothing"
    )
    forms: dict[str, Callable[[], AdapterWeights]] = {
        "peft": lambda: as_lora(weights),
        "portable": lambda: as_lora(weights, empty=True).portable(),
        "rounded": lambda: as_lora(weights, empty=True).portable(RANKS),
    }
    for name, form in forms.items():
        if kind == "dora" and name != "peft":
            with pytest.raises(AdapterError, match="DoRA"):
                form()
            continue
        rewrite(form(), tmp_path / name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_alike(logits(PeftModel.from_pretrained(tiny_model(architecture), tmp_path / name).eval()), wanted)
    model = tiny_model(architecture)
    adapters = read_peft(model, tmp_path / "theirs")
    assert_alike(logits(model), wanted)
    assert_alike(logits(merge(adapters)), wanted)


def rules_restated(settings: dict[str, Any], r: int, embedding: bool, own: tuple[int, float]) -> dict[str, float]:
    """The scale of each engine, for a layer whose tensor has `r` rows; `own` are rank and alpha by the patterns."""
    top, alpha = settings["r"], settings["lora_alpha"]
    power = 0.5 if settings["use_rslora"] else 1.0
    patterns = own[1] / own[0] ** power
    return {
        "PEFT": patterns, "transformers": patterns, "vLLM": patterns, "SGLang": alpha / top, "llama.cpp": alpha / r,
        "Ollama": alpha / r, "OpenVINO GenAI": 1.0,
    }  # fmt: skip


REFUSED_BY = {
    "adalora": set(RULES) - {"PEFT", "transformers"},
    "pruned": set(RULES) - {"PEFT", "transformers"},
    "dora": {"vLLM", "SGLang", "llama.cpp", "Ollama", "OpenVINO GenAI"},
    "embedding": {"OpenVINO GenAI", "Ollama"},
    "conv1d": {"llama.cpp", "Ollama"},
    "ranks": {"SGLang"},
    "both": {"SGLang"},
}
"""By reading: what does not even load, or loses a part, whatever its scale. mlx-lm never reads PEFT's folders."""


def wrong_by_formula(kind: str, seed: int, folder: Path) -> set[str]:
    """Engines whose change of any layer differs from PEFT's own."""
    settings, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    if kind in ("adalora", "pruned"):
        return set()
    wrong: set[str] = set()
    modules = dict(made(kind, seed).base_model.model.named_modules())
    for path, module in modules.items():
        embedding = f"{PREFIX}{path}.lora_embedding_A" in tensors
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        if f"{PREFIX}{path}.{names[0]}" not in tensors:
            continue
        A, B = (tensors[f"{PREFIX}{path}.{name}"].double() for name in names)
        truth = module.get_delta_weight("default").double()
        product = (B @ A).T if embedding or kind == "conv1d" else B @ A
        own = module.r["default"], module.lora_alpha["default"]
        for engine, scale in rules_restated(settings, A.shape[0], embedding, own).items():
            if (scale * product - truth).norm() > 1e-4 * truth.norm():
                wrong.add(engine)
    return wrong


def flagged(weights: AdapterWeights) -> set[str]:
    return {name for name, verdict in verdicts(weights).items() if verdict is not None}


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_the_rules_flag_exactly_the_engines_that_would_be_wrong(kind: str, seed: int, tmp_path: Path) -> None:
    weights = saved(kind, seed, tmp_path)
    expected = wrong_by_formula(kind, seed, tmp_path) | REFUSED_BY.get(kind, set()) | {"mlx-lm"}
    assert flagged(weights) == expected, verdicts(weights)
    assert all(verdict is None or verdict.startswith(name) for name, verdict in verdicts(weights).items())


@pytest.mark.parametrize(("kind", "seed"), [case for case in CASES if case[0] != "dora"])
def test_under_every_rule_the_portable_form_gives_one_and_the_same_change(kind: str, seed: int, tmp_path: Path) -> None:
    weights = saved(kind, seed, tmp_path / "theirs")
    rewrite(as_lora(weights, empty=True).portable(), tmp_path / "portable", {})
    portable = read_weights(tmp_path / "portable")
    engines = set(RULES) - {"mlx-lm"}
    for engine in engines:
        factors = factors_by_layer(engine, portable)
        assert set(factors) == set(portable.factors) and all(abs(one - 1) < 1e-9 for one in factors.values())
    if kind not in ("embedding", "conv1d"):
        assert flagged(portable) == {"mlx-lm"}
    else:
        assert flagged(portable) == REFUSED_BY[kind] | {"mlx-lm"}, "dropped whatever the scale"


def test_a_rule_gives_the_scale_of_one_layer(tmp_path: Path) -> None:
    made("rslora", 0)
    weights = saved("rslora", 0, tmp_path)
    path = next(iter(weights.factors))
    r, alpha = weights.settings["r"], weights.settings["lora_alpha"]
    facts = declared(weights)
    assert facts is not None
    scales = {name: engine_rules._RULES[RULES[name].scale](facts, path, weights.factors[path]) for name in RULES}
    assert scales["vLLM"] == pytest.approx(alpha / r**0.5)
    assert scales["SGLang"] == pytest.approx(alpha / r)
    assert scales["OpenVINO GenAI"] == 1.0
    assert scales["mlx-lm"] is None
    assert f"applies {r**-0.5:.4g} times the trained change in all" in (verdicts(weights)["SGLang"] or "")


def test_a_layer_that_was_left_without_a_rank_is_no_uneven_one(tmp_path: Path) -> None:
    weights = saved("plain", 0, tmp_path)
    path, part = next(iter(weights.factors.items()))
    empty = replace(part, A=part.A[:0], B=part.B[:, :0])
    assert verdicts(replace(weights, factors={**weights.factors, path: empty}))["SGLang"] is None


def test_settings_of_another_format_are_no_ones_adapter(tmp_path: Path) -> None:
    weights = saved("plain", 0, tmp_path)
    other = AdapterWeights({"peft_type": "LORA", "lora_parameters": {}}, weights.factors)
    assert all("export this adapter first" in (verdict or "") for verdict in verdicts(other).values())
