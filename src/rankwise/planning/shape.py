"""What a model is made of: every module that holds weights, by the path that transformers gives it.

A weight (O, I) maps I inputs to O outputs. An embedding has I rows of O numbers; a convolution's I is channels times
kernel. A tied head reads the embedding's weight and has none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["linear", "conv1d", "conv2d", "embedding", "other"]
"""`other` holds weights that no adapter is laid over: norms, positions, single vectors."""


@dataclass(frozen=True)
class Layer:
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
    """Of a convolution over images."""

    @property
    def parameters(self) -> int:
        return (0 if self.shares else self.inputs * self.outputs) + self.bias


@dataclass(frozen=True)
class Blocks:
    """What a stack of transformer blocks computes: sizes for one of `count` equal blocks."""

    count: int
    width: int
    heads: int
    key_value_heads: int
    head_size: int
    inner: int
    gated: bool
    causal: bool
    window: int | None = None
    """Tokens that attention looks back, where no block sees all."""

    @property
    def queries(self) -> int:
        """Numbers of a token's queries, in all heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """And of its keys, or values."""
        return self.key_value_heads * self.head_size


@dataclass(frozen=True)
class ModelShape:
    """`stacks` are its blocks: one stack, or encoder and decoder. `layers` are in the model's order."""

    name: str
    family: str
    """model_type of its config.json."""
    layers: tuple[Layer, ...]
    stacks: tuple[Blocks, ...]
    vocabulary: int
    """0 where there is none, as with images."""
    context: int | None
    head: str | None
    """The path of the layer that makes logits, which `all-linear` leaves alone."""
    made_by: str = ""
    """The class of transformers whose model this is; that of a model without a task's head is AutoModel."""

    @cached_property
    def linear(self) -> tuple[Layer, ...]:
        """The linear layers but the head, as `all-linear` means them."""
        return tuple(one for one in self.layers if one.kind in ("linear", "conv1d") and one.path != self.head)

    @cached_property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)
