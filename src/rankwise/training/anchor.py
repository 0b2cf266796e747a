"""An anchor to the base: what a step learns from its rows, plus how far it has moved from the base on other text.

    loss = mean over the rows' predictions of -log p  +  weight * mean over the text's tokens of KL(base || tuned)

The base is the same weights with the adapter switched off, so it costs no memory. The text (anchor_text.py) is cut into
blocks; which one a step takes is a function of (seed, step) alone. What the base says of a block never changes, so it
is computed once and stays as long as there is room for it. The fast form computes the block in one row with the step's
documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rankwise.data.batches import Batch
from rankwise.data.row_order import shuffled
from rankwise.evaluation.text import Text
from rankwise.forward.prefix_cache import StateCache
from rankwise.methods.trainable import Trainable
from rankwise.training.losses import AnchoredBackend
from rankwise.training.world import ALONE, World

STREAM = 0xA17C
"""Sets the order of blocks apart from that of rows, which the same seed decides."""


@dataclass
class BaseOnText:
    """The blocks of a text, and what the base says of each, which is computed once where there is room for it."""

    text: Text
    trainable: Trainable
    backend: AnchoredBackend
    room: int
    """Bytes."""
    world: World = ALONE
    _rows: StateCache = field(init=False)

    def __post_init__(self) -> None:
        self._rows = StateCache(self.room)

    def block(self, number: int) -> tuple[Batch, Tensor]:
        """A block alone, in which every token is predicted, and the base's rows for it (AnchoredBackend.base_rows)."""
        ids, length = self.text.blocks[number][None], self.text.length
        batch = Batch.of_tokens(ids[:, :-1], ids[:, 1:], length, torch.arange(length)[None], (length,))
        batch = batch.to(self.trainable.parameters()[0].device)
        return batch, self._rows.of(str(number).encode(), partial(self._base_rows, batch))

    @torch.no_grad()
    def _base_rows(self, batch: Batch) -> Tensor:
        with self.trainable.base():
            return self.backend.base_rows(batch)

    @torch.no_grad()
    def divergence(self, blocks: Sequence[int]) -> float:
        """Of the tuned model as it is now, in nats per token of these blocks, which are dealt over the processes."""
        own = blocks[self.world.rank :: self.world.size]
        apart = sum(self.backend.anchored(None, *self.block(number))[1].item() for number in own)
        (total,) = self.world.sums([apart])
        return total / (len(blocks) * self.text.length)


@dataclass
class Anchor:
    base: BaseOnText
    weight: float
    seed: int
    most: int
    """Tokens that may be computed at once."""

    def joins(self, batch: Batch) -> bool:
        """Whether the block of a step goes into one row with this batch."""
        base = self.base
        return base.backend.joins and not base.trainable.sets_apart and batch.size + base.text.length <= self.most

    def block(self, step: int) -> int:
        """The number of the block that step 0, 1, 2, … takes. Kinds of text take turns."""
        kinds = self.base.text.kinds
        of_kind, (number, kind) = len(self.base.text.blocks) // kinds, divmod(step, kinds)
        turn, place = divmod(number, of_kind)
        return int(shuffled(of_kind, STREAM, self.seed, turn)[place]) * kinds + kind

    def backward(self, batch: Batch | None, step: int, count: float) -> tuple[float, float]:
        """Add the gradients of a batch's losses divided by `count`, and those of the anchor; return both losses, the
        anchor's without its weight."""
        text, rows = self.base.block(self.block(step))
        loss, apart = self.base.backend.anchored(batch, text, rows)
        (loss / count + self.weight * apart / text.tokens).backward()
        return loss.item() / count, apart.item() / text.tokens
