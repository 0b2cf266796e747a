"""Where in the network a layer stands: what lies below the lowest layer that learns needs no backward pass.

A block is cut into groups by the paths of its layers, attention and what follows it, in the order in which they are
listed. Of a group the last layer writes into the residual stream; the others read from it, side by side, and between
them lies the core (scores of attention, or an activation). So a group has three stages, and a layer needs the gradient
of its input where something learns at an earlier stage. Blocks whose groups run side by side (Falcon, GPT-J) are taken
as if they came one after the other, which counts a little too much.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from rankwise.planning.shape import Layer, ModelShape

MULTIPLIES = ("linear", "conv1d", "conv2d")
READS, CORE, WRITES = range(3)
BELOW = -1
"""The block of what comes before all blocks, as an embedding."""
CROSS = re.compile(r"cross|enc_?dec|encoder_att", re.IGNORECASE)
BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True, order=True)
class Place:
    """Compared from input to output."""

    stack: int
    block: int
    stage: int


@dataclass(frozen=True)
class Placed:
    layer: Layer
    place: Place
    reads: Place
    """From where its input comes: its own place, but for what reads the other stack's output."""
    cross: bool = False
    """Of an attention that looks at the other stack's tokens."""

    @property
    def tokens_of(self) -> int:
        """The stack whose tokens go through it."""
        return self.reads.stack


def placed(shape: ModelShape) -> dict[str, Placed]:
    """Every layer but the head and those that hold no weights of ours, by path."""
    found: dict[str, Placed] = {}
    seen: set[int] = set()
    for layer in shape.layers:
        stack, number = _stack(layer.path, shape, seen), BLOCK.search(layer.path)
        if number is not None:
            seen.add(stack)
        elif layer.kind != "other" and layer.path != shape.head:
            block = shape.stacks[stack].count if stack in seen and shape.stacks else BELOW
            found[layer.path] = Placed(layer, at := Place(stack, block, READS), at)
    inside = [layer for layer in shape.layers if layer.kind in MULTIPLIES and BLOCK.search(layer.path)]
    for (stack, block), layers in groupby(inside, lambda layer: (_stack(layer.path, shape, seen), _block(layer))):
        for item in _of_block(list(layers), stack, block):
            found[item.layer.path] = item
    return {layer.path: found[layer.path] for layer in shape.layers if layer.path in found}


def core(stack: int, block: int, *, cross: bool = False) -> Place:
    """Where the scores of attention are made: the first group of a block is its attention, a cross-attention the
    second."""
    return Place(stack, block, CORE + (3 if cross else 0))


def _of_block(layers: list[Layer], stack: int, block: int) -> list[Placed]:
    found: list[Placed] = []
    for group, (kind, members) in enumerate(groupby(layers, _group)):
        names = list(members)
        for layer in names:
            last = layer is names[-1] and len(names) > 1
            place = Place(stack, block, 3 * group + (WRITES if last else READS))
            across = kind == "cross" and stack > 0 and not last and not _asks(layer)
            reads = Place(stack - 1, 10**9, READS) if across else place
            found.append(Placed(layer, place, reads, kind == "cross"))
    return found


def _asks(layer: Layer) -> bool:
    """Queries come from the own stack; keys and values from the other."""
    return layer.path.rpartition(".")[2].lower().startswith("q")


def _group(layer: Layer) -> str:
    name = layer.path[_end_of_number(layer.path) :]
    if CROSS.search(name):
        return "cross"
    return "attention" if "att" in name.lower() else "feed-forward"


def _stack(path: str, shape: ModelShape, seen: set[int]) -> int:
    """Of two, the first is an encoder or what looks at images. A layer of no name is of the stack that goes on."""
    if len(shape.stacks) < 2:
        return 0
    before = path[: _end_of_number(path)] if BLOCK.search(path) else path
    words = re.split(r"[._]", before.lower())
    if "decoder" in words or "language" in words or "text" in words:
        return 1
    if "encoder" in words or "vision" in words or "visual" in words:
        return 0
    return 1 if seen else 0


def _block(layer: Layer) -> int:
    number = BLOCK.search(layer.path)
    assert number is not None, layer.path
    return int(number[1])


def _end_of_number(path: str) -> int:
    number = BLOCK.search(path)
    return number.end() if number is not None else 0
