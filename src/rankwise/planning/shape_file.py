"""A model's shape as JSON and back, and shapes that were built once: a plan takes seconds only the first time.

Fields that have their default are left out, and equal blocks that follow each other are written once:

    {"repeat": "model.layers", "first": 0, "count": 30, "layers": [{"path": "self_attn.q_proj", ...}, ...]}

so the largest models take a few kilobytes. An entry of the cache is named for the SHA-256 of the config that the shape
was built from, of the version of transformers that built it and of our own format. One that cannot be read is built
anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, replace
from importlib.metadata import version
from itertools import groupby
from typing import Any

from rankwise.config.modules import NUMBER, Layer
from rankwise.errors import ResourceError
from rankwise.planning.config_check import checked_config
from rankwise.planning.shape import Blocks, ModelShape, NewHead, Saved
from rankwise.system.cache import cache_folder
from rankwise.system.files import write_atomic

FORMAT = 1
"""Raised whenever the meaning of a stored shape changes, so that a cache is not read with the wrong one."""
RECORDED = 3
"""Raised whenever a shape records more than before, so that shapes which lack it are built anew."""
IMAGE_PASSES = 1
"""Raised whenever a model of images is measured otherwise, so that shapes of older measurements are not read."""
Build = Callable[[dict[str, Any], str, str, NewHead | None], ModelShape]
"""A config, the model's name, the file that the config was read from and the head that the model gets, to its shape."""
LARGEST_COUNT = 10_000
MEASURED = ("saved", "passing", "reading")
"""Fields of blocks that a forward pass measured."""


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


def shape_to_json(shape: ModelShape) -> dict[str, Any]:
    whole = {key: getattr(shape, key) for key in ("family", "auto_class", "vocabulary", "context", "head")}
    stacks = [
        _short(stack) | {name: _measured(stack, name) for name in MEASURED if name == "saved" or getattr(stack, name)}
        for stack in shape.stacks
    ]  # fmt: skip
    head = {} if shape.outputs is None else {"outputs": shape.outputs, "heads": dict(shape.heads)}
    image = {} if shape.image is None else {"image": shape.image}
    return {"format": FORMAT, **whole, **head, **image, "stacks": stacks, "layers": list(_written(shape.layers))}


def shape_from_json(stored: dict[str, Any], name: str) -> ModelShape:
    """ValueError, KeyError or TypeError where `stored` is not what `shape_to_json` wrote."""
    if stored["format"] != FORMAT:
        raise ValueError(f"format {stored['format']}")
    stacks = tuple(
        Blocks(**stack | {name: {key: Saved(*one) for key, one in stack.get(name, {}).items()} for name in MEASURED})
        for stack in stored["stacks"]
    )
    return ModelShape(
        name, stored["family"], stored["auto_class"], tuple(_read(stored["layers"])), stacks, stored["vocabulary"],
        stored["context"], stored["head"], stored.get("outputs"),
        {name: tuple(size) for name, size in stored.get("heads", {}).items()}, stored.get("image"),
    )  # fmt: skip


def _measured(stack: Blocks, name: str) -> dict[str, list[float]]:
    return {key: _numbers(one) for key, one in getattr(stack, name).items()}


def _numbers(saved: Saved) -> list[float]:
    return [round(number, 3) for number in (saved.constant, saved.token, saved.pair)]


def _short(value: Layer | Blocks) -> dict[str, Any]:
    """The fields that are not at their default."""
    return {
        one.name: content
        for one in fields(value)
        if one.name not in MEASURED and ((content := getattr(value, one.name)) != one.default or one.default is MISSING)
    }


def _written(layers: Sequence[Layer]) -> Iterator[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    parts = {layer.path: NUMBER.search(layer.path) for layer in layers}
    ends = {path: ("", None) if at is None else (path[: at.start()], int(at[1])) for path, at in parts.items()}
    for (prefix, number), group in groupby(layers, lambda layer: ends[layer.path]):
        inside = list(group)
        if number is None:
            runs += [_short(layer) for layer in inside]
            continue
        block = [_short(replace(layer, path=_inside(layer.path))) for layer in inside]
        last = runs[-1] if runs else {}
        following = last.get("repeat") == prefix and last["first"] + last["count"] == number
        if following and last["layers"] == block:
            last["count"] += 1
        else:
            runs.append({"repeat": prefix, "first": number, "count": 1, "layers": block})
    return iter(runs)


def _read(runs: Iterable[dict[str, Any]]) -> Iterator[Layer]:
    for run in runs:
        if "repeat" not in run:
            yield _layer(run)
            continue
        if not 0 < run["count"] <= LARGEST_COUNT:
            raise ValueError(f"count {run['count']}")
        inside, prefix = [_layer(one) for one in run["layers"]], f"{run['repeat']}." if run["repeat"] else ""
        for number in range(run["first"], run["first"] + run["count"]):
            for layer in inside:
                path = f"{prefix}{number}.{layer.path}" if layer.path else f"{prefix}{number}"
                yield replace(layer, path=path)


def _layer(stored: dict[str, Any]) -> Layer:
    pairs: dict[str, Any] = {key: tuple(stored[key]) for key in ("parts", "kernel", "stacked") if key in stored}
    return Layer(**{**stored, **pairs})


def _inside(path: str) -> str:
    number = NUMBER.search(path)
    assert number is not None, path
    return path[number.end() :]
