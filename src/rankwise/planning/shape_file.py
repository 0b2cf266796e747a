"""A model's shape as JSON and back.

Fields that have their default are left out, and equal blocks that follow each other are written once:

    {"repeat": "model.layers", "first": 0, "count": 30, "layers": [{"path": "self_attn.q_proj", ...}, ...]}

so the largest models take a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, replace
from itertools import groupby
from typing import Any

from rankwise.config.layer import NUMBER, Layer
from rankwise.planning.shape import Blocks, ModelShape, Saved

FORMAT = 1
"""Raised whenever the meaning of a stored shape changes, so that a cache is not read with the wrong one."""
LARGEST_COUNT = 10_000
MEASURED = ("saved", "passing", "reading")
"""Fields of blocks that a forward pass measured."""


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
    for (prefix, number), group in groupby(layers, _prefix_and_number):
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


def _prefix_and_number(layer: Layer) -> tuple[str, int | None]:
    number = NUMBER.search(layer.path)
    return ("", None) if number is None else (layer.path[: number.start()], int(number[1]))


def _inside(path: str) -> str:
    number = NUMBER.search(path)
    assert number is not None, path
    return path[number.end() :]
