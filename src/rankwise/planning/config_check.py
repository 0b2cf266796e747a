"""Settings of a config.json that no model has, refused before a library builds anything from them.

transformers checks the kinds of values by itself. What it does not check is their size: a depth of a billion would be
built without end. Code from elsewhere is never asked for, so the settings that name it are dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError

NOT_ZERO = (
    "hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "n_positions",
)  # fmt: skip
DEEPEST, WIDEST = 2_000, 10_000_000
"""Of settings that count layers, and of those that count heads, classes, tokens or the numbers of a vector."""
DEPTHS = ("layers", "layer", "blocks", "depth")
WIDTHS = ("_size", "_dim", "_heads", "d_model", "d_ff", "n_embd", "n_inner", "n_head", "num_labels")
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
    problems = list(config_problems(config))
    if config.get("model_type") is None:
        problems.insert(0, 'setting "model_type" is missing.')
    if config.get("quantization_config"):
        problems.append('it sets "quantization_config": quantised weights cannot be planned yet.')
    refuse(where, problems)
    return _without_code(config)


def refuse(where: str, problems: list[str]) -> None:
    if len(problems) == 1:
        raise ModelError(f"{where}: {problems[0]}")
    if problems:
        raise ModelError("\n  ".join([f"{where} does not describe a model that can be used:", *problems]))


def config_problems(config: dict[str, Any]) -> Iterator[str]:
    """What no model has, at any depth."""
    kind, heads, shared = map(config.get, ("model_type", "num_attention_heads", "num_key_value_heads"))
    if not isinstance(kind, str | None):
        yield f'setting "model_type" is {shown(kind)}; the name of an architecture is expected.'
    if isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared:
        yield f'"num_key_value_heads" is {shared}, which does not divide "num_attention_heads" ({heads}).'
    settings = list(settings_in(config))
    for name, value in settings:
        most = DEEPEST if name.endswith(DEPTHS) else WIDEST if name.endswith(WIDTHS) else math.inf
        if isinstance(value, int | float) and value > most:
            yield f'"{name}" is {shown(value)}; at most {most:,} are planned or trained.'
        if isinstance(value, int | float) and not value >= 1 and name in NOT_ZERO:
            yield f'"{name}" is {shown(value)}; every model has at least 1.'
    if kind == TIMM or any(name in ("pretrained_cfg", "model_args") or value == TIMM for name, value in settings):
        yield from _timm_problems(settings)


def settings_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All settings at any depth; those in a list have the name of the list."""
    inside = value.items() if isinstance(value, dict) else [(name, one) for one in value]
    for key, one in inside:
        yield str(key), one
        if isinstance(one, dict | list):
            yield from settings_in(one, str(key))


def _timm_problems(settings: list[tuple[str, Any]]) -> Iterator[str]:
    """Settings that would have timm read weights from somewhere else."""
    for name, value in settings:
        if name == "architecture" and not (isinstance(value, str | None) and ARCHITECTURE.fullmatch(value or "none")):
            yield f'setting "architecture" is {shown(value)}; the name of one of timm\'s models is expected.'
        for key in value if name == "model_args" and isinstance(value, dict) else ():
            if str(key).startswith(OF_WEIGHTS):
                yield f'setting "model_args" has {shown(key)}, which would read weights; only sizes are expected.'


def _without_code(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {
            key: _without_code(value) for key, value in settings.items() if not any(word in str(key) for word in CODE)
        }
    return [_without_code(value) for value in settings] if isinstance(settings, list) else settings
