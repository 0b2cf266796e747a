"""What a model is made of, as a frozen value: every module that holds weights, and what its blocks keep and compute.

    layers    by the path that transformers gives them, each with its sizes and where it stands in the forward pass
    stacks    runs of equal transformer blocks: how many, how wide, and what a token keeps for the backward pass

A weight (O, I) maps I inputs to O outputs. An embedding has I rows of O numbers; a convolution's I is channels times
kernel. A tied head reads the embedding's weight and has none of its own. `shape_file.py` writes this value as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Kind = Literal["linear", "conv1d", "conv2d", "embedding", "other"]
"""`other` holds weights that no adapter is laid over: norms, positions, experts, single vectors."""
Position = tuple[int, int]
"""A block and a stage inside it; positions compare from input to output."""
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
    stage: int | None = None

    @property
    def parameters(self) -> int:
        return (0 if self.shares else self.inputs * self.outputs) + self.bias

    @cached_property
    def block(self) -> int | None:
        """The first number in the path."""
        number = NUMBER.search(self.path)
        return None if number is None else int(number[1])

    @property
    def position(self) -> Position | None:
        if self.stage is None:
            return None
        if self.block is None:
            return BEFORE if self.stage < 0 else AFTER
        return self.block, self.stage


@dataclass(frozen=True)
class Saved:
    """Bytes that one block keeps for its backward pass, of one sequence of S tokens: constant + token S + pair S^2."""

    constant: float
    token: float
    pair: float = 0.0

    def of(self, tokens: float, longest: int = 0) -> float:
        """`tokens` in sequences of at most `longest`."""
        return self.constant + tokens * (self.token + self.pair * longest)


@dataclass(frozen=True)
class Blocks:
    """A stack of `count` transformer blocks. `saved` has what the model's own code keeps in the mean one of them, by
    what learns ("adapter" or "full") and by number format, without an adapter's own activations."""

    count: int
    width: int
    queries: int
    """Numbers of a token's queries, in all heads together."""
    causal: bool
    window: int | None = None
    """Tokens that attention looks back, where no block sees all."""
    saved: Mapping[str, Saved] = field(default_factory=dict)
    """Keys are "adapter float32", "adapter bfloat16" and "full float32"."""


@dataclass(frozen=True)
class ModelShape:
    name: str
    family: str
    """model_type of its config.json."""
    auto_class: str
    """The class of transformers that built it. A model without a task's head is AutoModel's."""
    layers: tuple[Layer, ...]
    """In the model's order."""
    stacks: tuple[Blocks, ...]
    vocabulary: int
    """0 where there is none, as with images."""
    context: int | None
    head: str | None
    """The path of the layer that makes logits, which `all-linear` leaves alone."""

    @cached_property
    def linear(self) -> tuple[Layer, ...]:
        """The linear layers but the head, as `all-linear` means them."""
        return tuple(one for one in self.layers if one.kind in ("linear", "conv1d") and one.path != self.head)

    @cached_property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def blocks(self) -> Blocks:
        """Those that a causal language model has one stack of."""
        return self.stacks[-1]

    @property
    def is_causal_lm(self) -> bool:
        """Whether its training can be planned, not its parameters alone."""
        return self.auto_class == "AutoModelForCausalLM" and len(self.stacks) == 1 and bool(self.blocks.saved)

    def block_layers(self, number: int) -> list[Layer]:
        return [layer for layer in self.layers if layer.block == number]
