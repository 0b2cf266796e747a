"""A module of a model that holds weights, by its sizes and its position, as a plan and the settings of a method see it.

A weight (O, I) maps I inputs to O outputs. An embedding has I rows of O numbers; a convolution's I is channels times
kernel. A tied head reads the embedding's weight and has none of its own. Experts are one parameter that holds
a weight (O, I) of each expert of a block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["linear", "conv1d", "conv2d", "embedding", "experts", "other"]
"""`other` holds weights that no adapter is laid over: norms, positions, single vectors."""
Position = tuple[int, int]
"""A block and a stage inside it; positions compare from input to output."""
Heads = Mapping[str, tuple[int, ...]]
"""Sizes of the weights of modules that are trained whole beside an adapter, by their names in the model."""
Side = Literal["", "input", "output"]
"""Which tokens a layer of an encoder with a decoder maps: those that the encoder reads, as the keys and values of
cross-attention also do, or those that the decoder writes. Empty for all other models."""
BEFORE, AFTER = (-1, 0), (1 << 30, 0)
NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Layer:
    """A module with weights. `stage` counts the different inputs that layers of the same block were called with before
    this one, so layers that read one tensor side by side share a stage; outside blocks it is -1 before and 0 after
    them. It is None for a layer that the forward pass never calls, or where no forward pass was made."""

    path: str
    kind: Kind
    inputs: int = 0
    outputs: int = 0
    bias: int = 0
    """Parameters of the bias; of `other`, all of its parameters."""
    shares: str | None = None
    """The path of the layer whose weight this one reads."""
    parts: tuple[int, ...] = ()
    """Outputs of the query, the key and the value, where one layer makes all three."""
    kernel: tuple[int, int] | None = None
    """Height and width, for a convolution over images."""
    class_name: str = ""
    """The module's class, for `other` alone."""
    problem: str = ""
    """Why no adapter can be laid over it, for a convolution that is `other`."""
    stacked: tuple[str, ...] = ()
    """Names of its parameters that hold the weights of several experts and cannot be adapted, for `other` alone."""
    experts: int = 0
    """How many experts a parameter of kind `experts` holds, whose path is that of the parameter."""
    stage: int | None = None
    positions: float | None = None
    """In a model of images, how many inputs it maps for each planned token: the pixels that a convolution makes, or an
    encoder's own patches. None in a model of texts, where it is one."""
    side: Side = ""
    offset: int = 0
    """Blocks that the forward pass goes through before the stack of this one: of a decoder, those of its encoder."""

    @property
    def parameters(self) -> int:
        return (0 if self.shares else self.inputs * self.outputs * max(1, self.experts)) + self.bias

    @property
    def channels(self) -> int:
        """Input channels of a convolution over images."""
        return 0 if self.kernel is None else self.inputs // math.prod(self.kernel)

    @cached_property
    def block(self) -> int | None:
        """Its number among all blocks in the order of the forward pass: the first number in the path, and `offset`."""
        number = NUMBER.search(self.path)
        return None if number is None else int(number[1]) + self.offset

    @property
    def position(self) -> Position | None:
        """Block and stage in which the layer is called, or that it is before or after all blocks; None if unknown."""
        if self.stage is None:
            return None
        if self.block is None:
            return BEFORE if self.stage < 0 else AFTER
        return self.block, self.stage
