"""Settings of a config.json that no model has, refused before a library builds anything from them.

transformers checks the kinds of values by itself. What it does not check is their size: a depth of a billion would be
built without end. Code from elsewhere is never asked for, so the settings that name it are dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError, first_line

LARGEST, DEEPEST, MOST_LABELS = 10**9, 2_000, 1_000_000
"""The largest value of any setting in a model's config, the largest number of layers, and that of classes. The deepest
transformers have a thousand layers."""
NOT_ZERO = (
    "hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "n_positions",
)  # fmt: skip
WIDEST = 100_000_000
"""The largest value of settings that count heads, the numbers of a vector, or tokens; a plan makes tables of that
length too."""
WIDTHS = ("_size", "_dim", "_heads", "d_model", "d_ff", "n_embd", "n_inner", "n_head")
"""How their names end."""
CODE = ("auto_map", "implementation", "_name_or_path")
"""Keys with one of these words name code, or a place where there may be some."""


TIMM = "timm_wrapper"
"""The model_type of a model of timm inside transformers. timm's own folders name the architecture instead."""
ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)?")
"""An architecture of timm, with its variant. Anything else could name a file or a model elsewhere."""
OF_WEIGHTS = ("pretrained", "checkpoint", "cache", "scriptable", "exportable")
"""Arguments of timm's models whose names begin so would read weights, or change how they are built."""


def checked_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """`config` without the settings that name code. ModelError with all that stands against planning it; `where` is
    the file that it was read from."""
    if config.get("model_type") is None and isinstance(config.get("pretrained_cfg"), dict):
        config = config | {"model_type": TIMM}
    problems = [] if config.get("model_type") is not None else ['setting "model_type" is missing.']
    problems += config_problems(config)
    if config.get("quantization_config"):
        problems.append('it sets "quantization_config": quantised weights cannot be planned yet.')
    refuse(where, problems)
    return _without_code(config)


def refuse(where: str, problems: list[str]) -> None:
    """ModelError with the problems, if there are any."""
    if len(problems) == 1:
        raise ModelError(f"{where}: {problems[0]}")
    if problems:
        raise ModelError("\n  ".join([f"{where} does not describe a model that can be used:", *problems]))


def config_problems(config: dict[str, Any], *, any_number: bool = True) -> Iterator[str]:
    """What is wrong with a model's settings, at any depth. With `any_number` False, a number is checked only where it
    counts something."""
    kind, named = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str | None):
        yield f'setting "model_type" is {shown(kind)}; the name of an architecture is expected.'
    if not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        yield f'setting "architectures" is {shown(named)}; a list of names is expected.'
    for name, value in settings_in([config]):
        if isinstance(value, dict):
            heads, shared = value.get("num_attention_heads"), value.get("num_key_value_heads")
            if isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared:
                yield f'"num_key_value_heads" is {shared}, which does not divide "num_attention_heads" ({heads}).'
            yield from _timm_problems(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if any_number and (not math.isfinite(value) or abs(value) > LARGEST):
                yield f'"{name}" is {shown(value)}; no model has such a setting.'
            elif isinstance(value, int) and value > DEEPEST and name.endswith(("layers", "layer", "blocks", "depth")):
                yield f'"{name}" is {shown(value)}; at most {DEEPEST:,} layers are planned or trained.'
            elif value > MOST_LABELS and name == "num_labels":
                yield f'"{name}" is {shown(value)}; no classifier has more than {MOST_LABELS:,} classes.'
            elif value > WIDEST and name.endswith(WIDTHS):
                yield f'"{name}" is {shown(value)}; no model has one beyond {WIDEST:,}.'
            elif value < 1 and name in NOT_ZERO:
                yield f'"{name}" is {shown(value)}; every model has at least 1.'


def is_timm_config(config: dict[str, Any]) -> bool:
    wrapped = config.get("model_type") in (None, TIMM)
    return wrapped and isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)


def settings_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All settings at any depth; those in a list have the name of the list."""
    for key, one in value.items() if isinstance(value, dict) else ((name, one) for one in value):
        yield str(key), one
        if isinstance(one, dict | list):
            yield from settings_in(one, str(key))


def _timm_problems(settings: dict[str, Any]) -> Iterator[str]:
    """Settings that would have timm read weights from somewhere else."""
    architecture, arguments = settings.get("architecture"), settings.get("model_args")
    is_timm = settings.get("model_type") == TIMM or "pretrained_cfg" in settings or "model_args" in settings
    named = isinstance(architecture, str) and ARCHITECTURE.fullmatch(architecture)
    if is_timm and architecture is not None and not named:
        yield f'setting "architecture" is {shown(architecture)}; the name of one of timm\'s models is expected.'
    for name in arguments if isinstance(arguments, dict) else ():
        if str(name).startswith(OF_WEIGHTS):
            yield f'setting "model_args" has {shown(name)}, which would read weights; only sizes are expected.'


def _without_code(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {
            key: _without_code(value) for key, value in settings.items() if not any(word in str(key) for word in CODE)
        }
    return [_without_code(value) for value in settings] if isinstance(settings, list) else settings


def hub_config(folder: Path, *, trusted: bool = False) -> Any:
    """The settings of a model's folder as transformers reads them, with its defaults for those that are left out."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # as many kinds as there are architectures
        raise ModelError(f"{folder} contains no model that can be loaded: {first_line(error)}") from None
