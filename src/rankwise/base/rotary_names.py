"""A model's rotary settings under the names of both generations of transformers.

transformers 5 writes `rope_parameters` alone. transformers 4 and mlx-lm read the older names, and where these are
missing they take their own default of the base of the angles without a word: 10,000, where SmolLM2 has 100,000.

    rope_parameters                                          older names
    {"rope_theta": t, "rope_type": "default"}                rope_theta (and partial_rotary_factor, where there is one)
    {"rope_theta": t, "rope_type": other, …}                 the same, and rope_scaling {"rope_type": other, …}
    {"full_attention": {…}, "sliding_attention": {…}}        Gemma 3's: the same, and rope_local_base_freq of the second

In models of the types `longrope` and `dynamic` the angles of a long sequence depend on its length. transformers takes
that of the longest sequence of a call, so that a row would change with its neighbours; here each turns by its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.system.files import write_json
from rankwise.system.foreign_json import read_json

CONFIG = "config.json"
PARTS = ("text_config", "llm_config")
"""Where a model of several parts has the settings of its language model."""
BY_LENGTH = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Types whose angles depend on the length, and the setting that has the last length at which they do not."""


def alike_up_to(module: nn.Module, types: Collection[str] = tuple(BY_LENGTH)) -> float:
    """The most tokens of a sequence whose rotary angles depend on positions alone; infinite for other types."""
    config = vars(module).get("config")
    settings = {} if config is None else vars(config.get_text_config(decoder=True))
    parameters = settings.get("rope_parameters") or {}
    kinds = [one for one in parameters.values() if isinstance(one, dict)] or [parameters]
    own = [(settings | one, BY_LENGTH[one["rope_type"]]) for one in kinds if one.get("rope_type") in types]
    return min((every[name] for every, name in own), default=inf)


class AnglesByRow(nn.Module):
    """Gives a sequence the rotary angles that `inner` gives it alone. A sequence begins where positions do not count
    on."""

    def __init__(self, inner: Any, alike: float) -> None:
        super().__init__()
        self.inner, self.rope_type, self._alike = inner, inner.rope_type, int(alike)

    def forward(self, x: Tensor, position_ids: Tensor, *kind: Any, **named: Any) -> tuple[Tensor, ...]:
        """Map positions (B, T) to cosines and sines (B, T, D)."""
        run = F.pad(position_ids.diff() != 1, (1, 0)).cumsum(-1)
        last = torch.zeros_like(run).scatter_reduce(1, run, position_ids, "amax").gather(1, run)
        last, made = last.clamp(min=self._alike - 1), ()
        for one in last.unique():
            self.inner(x, torch.zeros_like(run), *kind, **named)  # it would keep the angles of a longer sequence
            own, here = self.inner(x, position_ids.where(last == one, 0), *kind, **named), (last == one)[..., None]
            made = own if not made else tuple(torch.where(here, *both) for both in zip(own, made, strict=True))
        return made


def turn_by_row(module: nn.Module, alike: float) -> None:
    """Let each row of a batch turn by its own length; `attention_mask` says where padded rows end."""
    for part in list(module.modules()):
        for name, inner in part.named_children():
            if name == "rotary_emb" and "rope_type" in vars(inner):
                setattr(part, name, AnglesByRow(inner, alike))
                part.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = named.get("attention_mask")
    there = any(named.get(name) is not None for name in ("position_ids", "cache", "past_key_values"))
    if not there and mask is not None and mask.ndim == 2:
        named["position_ids"] = (mask.long().cumsum(-1) - 1) * mask.long()
    return arguments, named


def with_older_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of config.json, with the older names where they are missing. Both generations read the result as
    the same model."""
    parts = {name: with_older_names(settings[name]) for name in PARTS if isinstance(settings.get(name), dict)}
    return {**_older_names(settings), **settings, **parts}


def missing_names(folder: Path) -> dict[str, Any]:
    """What a model's folder lacks for readers of the older names: settings of config.json, by name."""
    own = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return {name: value for name, value in with_older_names(own).items() if own.get(name) != value}


def write_older_names(folder: Path) -> None:
    """Complete the config.json of a folder that transformers wrote."""
    if missing := missing_names(folder):
        write_json(folder / CONFIG, read_json(folder / CONFIG) | missing)


def _older_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    parameters = settings.get("rope_parameters")
    if not isinstance(parameters, dict):
        return {}
    if str(settings.get("model_type")).startswith("gemma3") and isinstance(parameters.get("full_attention"), dict):
        local = parameters.get("sliding_attention") or {}
        names = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        return names | _of_one(parameters["full_attention"])
    return _of_one(parameters)


def _of_one(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if "rope_theta" not in parameters:
        return {}
    names = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    if parameters.get("rope_type", "default") == "default":
        return names
    return names | {"rope_scaling": {name: value for name, value in parameters.items() if name != "rope_theta"}}
