"""A model's rotary settings under the names of both generations of transformers.

transformers 5 writes `rope_parameters` alone. transformers 4 and mlx-lm read the older names, and where these are
missing they take their own default of the base of the angles without a word: 10,000, where SmolLM2 has 100,000.

    rope_parameters                                          older names
    {"rope_theta": t, "rope_type": "default"}                rope_theta (and partial_rotary_factor, where there is one)
    {"rope_theta": t, "rope_type": other, …}                 the same, and rope_scaling {"rope_type": other, …}
    {"full_attention": {…}, "sliding_attention": {…}}        Gemma 3's: the same, and rope_local_base_freq of the second
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.system.files import write_json
from rankwise.system.foreign_json import read_json

CONFIG = "config.json"
PARTS = ("text_config", "llm_config")
"""Where a model of several parts has the settings of its language model."""


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
