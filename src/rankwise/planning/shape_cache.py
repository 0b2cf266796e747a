"""Shapes that were built once, by the settings that they were built from: a plan takes seconds only the first time.

An entry is named for the SHA-256 of the config, of the version of transformers that built it and of our own format. One
that cannot be read is built anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rankwise.errors import ResourceError
from rankwise.planning.config_check import checked_config
from rankwise.planning.shape import ModelShape, NewHead
from rankwise.planning.shape_file import FORMAT, shape_from_json, shape_to_json
from rankwise.system.cache import cache_folder
from rankwise.system.files import write_atomic

RECORDED = 3
"""Raised whenever a shape records more than before, so that shapes which lack it are built anew."""
IMAGE_PASSES = 1
"""Raised whenever a model of images is measured otherwise, so that shapes of older measurements are not read."""
Build = Callable[[dict[str, Any], str, str, NewHead | None], ModelShape]
"""A config, the model's name, the file that the config was read from and the head that the model gets, to its shape."""


def cached_shape(
    config: dict[str, Any], name: str, where: str, build: Build, head: NewHead | None = None
) -> ModelShape:
    settings = checked_config(config, where)
    file = cache_folder() / "shapes" / f"{_key(settings, head)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return shape_from_json(json.loads(file.read_text(encoding="utf-8")), name)
    shape = build(settings, name, where, head)
    with suppress(OSError, ResourceError):  # where nothing can be written, it is built each time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(shape_to_json(shape), separators=(",", ":")).encode())
    return shape


def _key(settings: dict[str, Any], head: NewHead | None) -> str:
    parts: list[Any] = [FORMAT, RECORDED, version("transformers"), settings]
    if head is not None:
        later = {"words": head.words or None, "pooled": head.pooled or None}  # other heads keep their keys
        own = asdict(head) | later
        parts.append({name: value for name, value in own.items() if value is not None})
        parts += [IMAGE_PASSES] if head.image is not None else []
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
