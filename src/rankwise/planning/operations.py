"""How many floating point operations training takes, counted from the shape alone.

Of a layer (O, I), for each token: 2 I O forward, 2 I O for the gradient of its input where something below it learns,
2 I O for that of its weight where the whole model learns. Of an adapter of rank r: 2 r (I + O) forward and twice that
backward. Of attention over a sequence of S tokens: 4 H h for each pair that sees each other (S^2 / 2 pairs if causal),
and two and a half times that backward, since the scores are made again. Of the head: where a token is supervised, once
forward, and backward once for its input and once more for its weight.

    fwd = F_layers + F_attn + F_lora + f F_head          bwd = b (F_layers + 2.5 F_attn) + 2 F_lora + f F_head
    again = c (F_layers + F_attn + F_lora)               with checkpointing of a share c of the blocks

What lies below the lowest layer that learns needs no backward pass: layers are compared by the stage at which the
forward pass called them (planning/shape.py). Attention's scores come after a block's first stage. Norms, activations
and the optimizer count as nothing: they move memory.

In a model of images a forward pass measured how many inputs each layer maps, and all operations; those of no layer,
such as grouped convolutions, count as attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rankwise.config.method import MethodConfig
from rankwise.config.modules import AFTER, BEFORE, Layer, Position
from rankwise.planning.shape import Blocks, ModelShape

BACKWARD_OF_ATTENTION = 2.5
ADAPTERS = MethodConfig()
FIRST, SECOND = 0, 1
"""Stages of a block: layers that make queries, keys and values, and what follows attention."""


@dataclass(frozen=True)
class Load:
    """What goes through the model: the tokens of each sequence, and how many of all are supervised."""

    lengths: tuple[int, ...]
    supervised: float
    outputs: tuple[int, ...] = ()
    """How many tokens of each sequence the decoder writes, in an encoder with a decoder; the encoder reads the rest."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def output_tokens(self) -> int:
        return sum(self.outputs)

    @property
    def sides(self) -> list[tuple[int, int]]:
        """How many tokens of each sequence an encoder reads, and how many its decoder writes."""
        return [(length - output, output) for length, output in zip(self.lengths, self.outputs, strict=True)]


@dataclass(frozen=True)
class Operations:
    """Operations of one forward and backward pass over `load`. `ranks` gives the rank of each adapted layer by its
    path."""

    shape: ModelShape
    load: Load
    ranks: Mapping[str, float]
    method: MethodConfig = ADAPTERS
    recomputed: float = 0.0
    """Share of the blocks that are computed a second time for the backward pass."""
    trimmed: bool = False
    """Whether of the last block only what the head gets is computed, as our fast form does."""
    frozen: int = 0
    """Blocks whose outputs are cached, so that they are computed in one of `passes`."""
    passes: float = 1.0

    @cached_property
    def layers(self) -> float:
        return sum(2 * _size(layer) * tokens * self._share(at) for layer, at, tokens in self._linear)

    @cached_property
    def attention(self) -> float:
        blocks = self._attention
        return sum(blocks) - sum(blocks[: self.frozen]) * (1 - 1 / self.passes)

    @cached_property
    def adapters(self) -> float:
        return self._low_rank + self._head[1]

    @property
    def head(self) -> float:
        return self._head[0]

    @property
    def forward(self) -> float:
        return self.layers + self.attention + self.adapters + self.head

    @cached_property
    def layers_back(self) -> float:
        to_inputs = sum(2 * _size(layer) * tokens for layer, at, tokens in self._linear if self._lowest < at)
        return to_inputs + self.method.base_gradients * self.layers

    @property
    def attention_back(self) -> float:
        blocks = enumerate(self._attention)
        return BACKWARD_OF_ATTENTION * sum(amount for block, amount in blocks if self._lowest < (block, SECOND))

    @property
    def head_back(self) -> float:
        return self.head * (self.method.base_gradients + (self._lowest < AFTER))

    @property
    def backward(self) -> float:
        return self.layers_back + self.attention_back + 2 * self.adapters + self.head_back

    @property
    def again(self) -> float:
        return self.recomputed * (self.layers + sum(self._attention) + self._low_rank)

    @cached_property
    def total(self) -> float:
        return self.forward + self.backward + self.again

    @cached_property
    def _linear(self) -> list[tuple[Layer, Position, float]]:
        """Linear layers but the head, where each stands, and how many tokens it maps."""
        # of images convolutions too, and how often each layer is used was measured
        layers = [layer for layer in self.shape.layers if layer.positions is not None] or self.shape.linear
        return [(layer, at, self._tokens(layer)) for layer in layers if (at := layer.position) is not None]

    @cached_property
    def _low_rank(self) -> float:
        """Operations of the forward pass through all adapters except one over the head."""
        return sum(2 * self._rank(layer) * _ends(layer) * tokens for layer, _, tokens in self._linear)

    @cached_property
    def _lowest(self) -> Position:
        """The position of the lowest layer that has an adapter, without the head; where none has one, the lowest place
        that learns by the method."""
        at = {layer.path: layer.position for layer in self.shape.layers if layer.path != self.shape.head}
        return min((found for path in self.ranks if (found := at.get(path)) is not None), default=self.method.lowest)

    def _share(self, at: Position) -> float:
        """The share of passes over the rows in which a layer at this position is computed forward."""
        return 1 / self.passes if BEFORE < at < (self.frozen, FIRST) else 1.0

    def _tokens(self, layer: Layer) -> float:
        """How many tokens the layer maps. In the last block, all stages but the first may be computed only where the
        head needs them. The head of a sequence classifier reads one position of each row. For models of images, the
        positions of each layer were measured."""
        if layer.positions is not None:
            return layer.positions * self.load.tokens
        if layer.side:
            return self.load.output_tokens if layer.side == "output" else self.load.tokens - self.load.output_tokens
        if layer.position == AFTER:
            return self.shape.task.above(self.load.tokens, self.load.supervised)
        last = layer.block == self.shape.blocks.count - 1 and layer.stage != FIRST
        return self.load.supervised if self.trimmed and last else self.load.tokens

    @cached_property
    def _attention(self) -> list[float]:
        """Operations of the forward pass through the attention of each block; in a model of images, all that were
        measured beside the layers."""
        blocks = self.shape.blocks
        if blocks.rest:
            return [blocks.rest * self.load.tokens] * blocks.count
        if self.load.outputs:
            return self._both_sides(self.shape.stacks[0], blocks)
        return [4.0 * blocks.queries * sum(_pairs(length, blocks) for length in self.load.lengths)] * blocks.count

    def _both_sides(self, encoder: Blocks, decoder: Blocks) -> list[float]:
        """A decoder's block also compares each token that it writes with each that the encoder read."""
        sides = self.load.sides
        reads = 4.0 * encoder.queries * sum(_pairs(given, encoder) for given, _ in sides)
        writes = 4.0 * decoder.queries * sum(_pairs(output, decoder) + given * output for given, output in sides)
        return [reads] * encoder.count + [writes] * decoder.count

    def _rank(self, layer: Layer) -> float:
        return self.ranks.get(layer.path, 0)

    @cached_property
    def _head(self) -> tuple[float, float]:
        """Operations of the forward pass through the layer that makes logits, and through an adapter over it."""
        layers = {layer.path: layer for layer in self.shape.layers}
        if self.shape.head is None or self.shape.head not in layers:
            return 0.0, 0.0
        layer = layers[self.shape.head]
        shared = layers.get(layer.shares or "", layer)
        size = _size(layer) or _size(shared)
        return 2.0 * size * self.load.supervised, 2.0 * self._rank(layer) * _ends(layer) * self.load.supervised


def _pairs(length: int, blocks: Blocks) -> float:
    """Tokens that see each other; `window` back, and where attention looks both ways also forth."""
    seen = min(length, blocks.window) if blocks.window is not None else length
    back = seen * length - seen**2 / 2
    return back if blocks.causal else 2 * back


def _size(layer: Layer) -> int:
    return layer.inputs * layer.outputs


def _ends(layer: Layer) -> int:
    return layer.inputs + layer.outputs
