"""How many floating point operations training takes, counted from the shape alone.

Of a layer (O, I), for each token: 2 I O forward, 2 I O for the gradient of its input where something below it learns,
2 I O for that of its weight where the whole model learns. Of an adapter of rank r: 2 r (I + O) forward and twice that
backward. Of attention over a sequence of S tokens: 4 H h for each pair that sees each other (S^2 / 2 pairs if causal),
and two and a half times that backward, since the scores are made again. Of the head: where a token is supervised, once
forward, and backward once for its input and once more for its weight.

    fwd = F_layers + F_attn + F_lora + f F_head          bwd = b (F_layers + 2.5 F_attn) + 2 F_lora + f F_head
    again = c (F_layers + F_attn + F_lora)               with checkpointing of a share c of the blocks

Norms, activations and the optimizer count as nothing: they move memory. Convolutions are counted once for each token,
which fits the patches of a vision transformer and no convolutional network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rankwise.config.adapters import AdaLoraConfig
from rankwise.planning.order import BELOW, MULTIPLIES, READS, Place, Placed, core, placed
from rankwise.planning.shape import Blocks, Layer, ModelShape

BACKWARD_OF_ATTENTION = 2.5


@dataclass(frozen=True)
class Load:
    """What goes through the model: the tokens of each sequence, and how many of all are supervised. `given` are the
    lengths of what an encoder reads, where there is one."""

    lengths: tuple[int, ...]
    supervised: float
    given: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def of_stack(self, stack: int, stacks: int) -> tuple[int, ...]:
        return self.given if stack < stacks - 1 else self.lengths


@dataclass(frozen=True)
class Operations:
    layers: float
    attention: float
    adapters: float
    head: float
    """So far, forward."""
    layers_back: float
    attention_back: float
    adapters_back: float
    head_back: float
    again: float
    """Of blocks that are computed a second time for the backward pass."""

    @property
    def forward(self) -> float:
        return self.layers + self.attention + self.adapters + self.head

    @property
    def backward(self) -> float:
        return self.layers_back + self.attention_back + self.adapters_back + self.head_back

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.again


def operations(
    shape: ModelShape, load: Load, ranks: Mapping[str, float] | None, *, recomputed: float = 0.0, trimmed: bool = False
) -> Operations:
    """Of one pass forward and backward over `load`. `ranks` gives the rank of each adapted layer by its path; None
    means that the whole model learns. `trimmed`: of the last block only what the head gets is computed, as our fast
    form does."""
    return _Count(shape, load, ranks, recomputed, trimmed).operations()


@dataclass(frozen=True)
class _Count:
    shape: ModelShape
    load: Load
    ranks: Mapping[str, float] | None
    recomputed: float
    trimmed: bool

    def operations(self) -> Operations:
        linear = [(item, self.tokens(item)) for item in self.multiplying]
        layers = sum(2 * _size(item.layer) * tokens for item, tokens in linear)
        to_inputs = sum(2 * _size(item.layer) * tokens for item, tokens in linear if self.lowest < item.reads)
        attention = [(place, self.attention(place)) for place in self.cores]
        forward = sum(made for _, made in attention)
        adapters = sum(2 * self.rank(item.layer) * _ends(item.layer) * tokens for item, tokens in linear)
        head, head_adapter = self.head()
        whole = self.ranks is None
        return Operations(
            layers, forward, adapters + head_adapter, head,
            layers_back=to_inputs + (layers if whole else 0),
            attention_back=BACKWARD_OF_ATTENTION * sum(made for place, made in attention if self.lowest < place),
            adapters_back=2 * (adapters + head_adapter),
            head_back=head * (whole + (self.lowest < self.above)),
            again=self.recomputed * (layers + forward + adapters),
        )  # fmt: skip

    @cached_property
    def places(self) -> dict[str, Placed]:
        return placed(self.shape)

    @cached_property
    def multiplying(self) -> list[Placed]:
        return [item for item in self.places.values() if item.layer.kind in MULTIPLIES]

    @cached_property
    def lowest(self) -> Place:
        """Of what learns."""
        if self.ranks is None:
            return Place(0, BELOW, READS)
        return min((self.places[path].place for path in self.ranks if path in self.places), default=self.above)

    @property
    def above(self) -> Place:
        """All layers but the head."""
        return Place(len(self.shape.stacks), 0, 0)

    @cached_property
    def cores(self) -> list[Place]:
        across = {(item.place.stack, item.place.block) for item in self.places.values() if item.cross}
        return [
            core(stack, block, cross=cross)
            for stack, blocks in enumerate(self.shape.stacks)
            for block in range(blocks.count)
            for cross in (False, True)
            if not cross or (stack, block) in across
        ]

    def tokens(self, item: Placed) -> float:
        stacks = len(self.shape.stacks)
        trimmed = self.trimmed and item.place.stack == stacks - 1 and item.place.stage > READS
        if trimmed and item.place.block == self.shape.stacks[-1].count - 1:
            return self.load.supervised
        return sum(self.load.of_stack(item.tokens_of, stacks))

    def attention(self, place: Place) -> float:
        blocks, cross = self.shape.stacks[place.stack], place == core(place.stack, place.block, cross=True)
        return 4.0 * self.pairs[place.stack, cross] * blocks.queries

    @cached_property
    def pairs(self) -> dict[tuple[int, bool], float]:
        """Of tokens that see each other, by stack; True for those of the own stack and the one before it."""
        stacks, found = self.shape.stacks, {}
        for stack, blocks in enumerate(stacks):
            own = self.load.of_stack(stack, len(stacks))
            found[stack, False] = sum(_pairs(length, blocks) for length in own)
            other = self.load.of_stack(stack - 1, len(stacks)) if stack else ()
            found[stack, True] = sum(a * b for a, b in zip(own, other, strict=False))
        return found

    def rank(self, layer: Layer) -> float:
        return (self.ranks or {}).get(layer.path, 0)

    def head(self) -> tuple[float, float]:
        """Of the layer that makes logits, and of an adapter over it."""
        layers = {layer.path: layer for layer in self.shape.layers}
        if self.shape.head is None or self.shape.head not in layers:
            return 0.0, 0.0
        layer = layers[self.shape.head]
        shared = layers.get(layer.shares or "", layer)
        size = _size(layer) or _size(shared)
        return 2.0 * size * self.load.supervised, 2.0 * self.rank(layer) * _ends(layer) * self.load.supervised


def mean_rank_factor(spec: AdaLoraConfig) -> float:
    """The mean rank that AdaLoRA computes with over a run, as a multiple of its budget: what it starts with until the
    ranks are decided, and from then on what is kept, if the rest is taken out."""
    return spec.initial * (1 - spec.final) + spec.final if spec.shrink else spec.initial


def penalty_operations(shape: ModelShape, ranks: Mapping[str, float]) -> float:
    """Of one optimizer step of AdaLoRA, whatever its tokens: P^T P and Q Q^T, and as much for their gradient."""
    return sum(4.0 * ranks.get(layer.path, 0) ** 2 * _ends(layer) for layer in shape.layers)


def _pairs(length: int, blocks: Blocks) -> float:
    """Tokens that see each other; `window` back, and where attention looks both ways also forth."""
    seen = min(length, blocks.window) if blocks.window is not None else length
    back = seen * length - seen**2 / 2
    return back if blocks.causal else 2 * back


def _size(layer: Layer) -> int:
    return layer.inputs * layer.outputs


def _ends(layer: Layer) -> int:
    return layer.inputs + layer.outputs
