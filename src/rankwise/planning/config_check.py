"""Settings of a config.json that no model has, refused before a library builds anything from them.

transformers checks the kinds of values by itself. What it does not check is their size: a depth of a billion would be
built without end. Code from elsewhere is never asked for, so the settings that name it are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError

LARGEST, DEEPEST = 10**9, 2_000
"""Of any setting, and of one that counts layers: the deepest transformers have a thousand."""
CODE = ("auto_map", "implementation", "_name_or_path")
"""Keys with one of these words name code, or a place where there may be some."""


def checked_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """`config` without the settings that name code. ModelError with all that stands against planning it; `where` is
    the file that it was read from."""
    problems = list(_problems(config))
    if not isinstance(config.get("model_type"), str):
        given = config.get("model_type")
        problems.insert(
            0, 'setting "model_type" is missing.' if given is None else f'setting "model_type" is {shown(given)}.'
        )
    if config.get("quantization_config"):
        problems.append('it sets "quantization_config": quantised weights cannot be planned yet.')
    if problems:
        raise refused(where, problems)
    return _without_code(config)


def refused(where: str, problems: list[str]) -> ModelError:
    if len(problems) == 1:
        return ModelError(f"{where}: {problems[0]}")
    return ModelError(
        "\n".join([f"{where} does not describe a model that can be planned:", *(f"  {p}" for p in problems)])
    )


def _problems(settings: Any, name: str = "") -> Iterator[str]:
    """Every number at any depth; `name` is the nearest key above it."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _problems(value, str(key))
    elif isinstance(settings, list):
        for value in settings:
            yield from _problems(value, name)
    elif isinstance(settings, int | float) and not isinstance(settings, bool):
        if not math.isfinite(settings) or abs(settings) > LARGEST:
            yield f'"{name}" is {shown(settings)}; no model has such a setting.'
        elif isinstance(settings, int) and settings > DEEPEST and name.endswith(("layers", "layer", "blocks", "depth")):
            yield f'"{name}" is {shown(settings)}; at most {DEEPEST:,} layers are planned.'


def _without_code(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {
            key: _without_code(value) for key, value in settings.items() if not any(word in str(key) for word in CODE)
        }
    return [_without_code(value) for value in settings] if isinstance(settings, list) else settings
