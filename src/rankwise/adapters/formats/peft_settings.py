"""adapter_config.json for factors that are known: PEFT's settings as data, from the rank and scale of each layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from rankwise.adapters.base_layers import kind_of
from rankwise.adapters.formats.peft_config import NO_TARGETS, commonest, pattern_of, tidy
from rankwise.adapters.weights import Factors
from rankwise.kernels.linear import is_conv1d

COMMON: dict[str, Any] = {
    "alpha_pattern": {}, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layers_pattern": None, "layers_to_transform": None, "peft_type": "LORA", "rank_pattern": {}, "use_dora": False,
    "use_rslora": False,
}  # fmt: skip


def settings_of(
    factors: Mapping[str, Factors], layers: Mapping[str, nn.Module], modules: Collection[str]
) -> dict[str, Any]:
    """`layers` are those with factors, and `modules` the paths of all. `r` is the largest rank, since engines make room
    by it, and `lora_alpha` that of a layer which has it: lora_alpha / r, all that some engines read, is then the scale
    wherever all layers have one. Stacked experts are named as `target_parameters`."""
    if not factors:  # PEFT lays no factors for a target of this name, and reads the heads alone
        return {**COMMON, "lora_alpha": 1, "r": 1, "target_modules": NO_TARGETS}
    ranks = {path: part.rank for path, part in factors.items()}
    alphas = {path: tidy(part.scale * part.rank) for path, part in factors.items()}
    rank = max(ranks.values())
    alpha = commonest({path: alphas[path] for path in ranks if ranks[path] == rank})
    experts = [path for path, part in factors.items() if part.experts]
    named = {"target_parameters": _parameter_names(experts, modules)} if experts else {}
    linear = modules
    if isinstance(modules, Mapping):
        linear = [path for path, module in modules.items() if kind_of(module) != "experts"]
    return {
        **COMMON,
        "alpha_pattern": pattern_of({path: value for path, value in alphas.items() if value != alpha}),
        "fan_in_fan_out": all(map(is_conv1d, layers.values())),
        "lora_alpha": alpha,
        "r": rank,
        "rank_pattern": pattern_of({path: value for path, value in ranks.items() if value != rank}),
        "target_modules": _target_names([path for path in factors if path not in experts], linear),
        "use_dora": any(part.magnitude is not None for part in factors.values()),
        **named,
    }


def _target_names(paths: list[str], modules: Collection[str]) -> list[str]:
    """Last names where they select exactly these layers, whole paths elsewhere."""
    leaves = {path.rpartition(".")[2] for path in paths}
    selected = [path for path in modules if path.rpartition(".")[2] in leaves]
    return sorted(leaves if set(selected) == set(paths) else paths)


def _parameter_names(paths: list[str], modules: Iterable[str]) -> list[str]:
    """The last two names where they select exactly these parameters, whole paths elsewhere."""
    ends = {".".join(path.split(".")[-2:]) for path in paths}
    selected = {path for path in modules if any(path == end or path.endswith(f".{end}") for end in ends)}
    return sorted(ends if selected == set(paths) else paths)
