"""An anchor to the base: what a step learns from its rows, plus how far it has moved from the base on other text.

    loss = mean over the rows' predictions of -log p  +  weight * mean over the text's tokens of KL(base || tuned)

The base is the same weights with the adapter switched off, so it costs no memory. The text is one that the base writes
itself, or one that is given, and is cut into blocks; which one a step takes is a function of (seed, step) alone. What
the base says of a block never changes, so it is computed once and stays as long as there is room for it. The fast form
computes the block in one row with the step's documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from rankwise.config.anchor import BLOCKS, OWN_TEXT, AnchorConfig
from rankwise.config.training import TrainingConfig
from rankwise.data.batches import Batch
from rankwise.data.row_order import shuffled
from rankwise.evaluation.text import Text, cut, read_text
from rankwise.forward.prefix_cache import StateCache
from rankwise.inference.own_text import own_blocks
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.runs.manifest import AnchorFacts
from rankwise.runs.records import Callback
from rankwise.training.backend import AnchoredBackend
from rankwise.training.world import ALONE, World

STREAM = 0xA17C
"""Sets the order of blocks apart from that of rows, which the same seed decides."""


def anchor_text(config: AnchorConfig, model: LoadedModel, steps: int, callback: Callback) -> Text:
    """Where no text is named, the base writes one: `model` must be as it was before it learned. DataError where a text
    has fewer than two blocks."""
    if config.text is not None:
        return cut(read_text(config.text), model, blocks=BLOCKS, length=config.tokens, least=2)
    length = min(config.tokens, model.context_length or config.tokens)
    blocks = own_blocks(model, min(BLOCKS, steps), length, callback)
    about = f"{OWN_TEXT}: {len(blocks)} blocks of {length} tokens"
    return Text(blocks, about, sha256(blocks.numpy().tobytes()).hexdigest(), ())


def text_of_run(
    config: TrainingConfig, model: LoadedModel, trainable: Trainable, callback: Callback, world: World = ALONE
) -> Text | None:
    """None where the run is not held to its base. What the base writes is written by the first process, for all."""
    if (settings := config.anchor) is None:
        return None

    def written() -> list[Any]:
        with trainable.base():
            text = anchor_text(settings, model, config.steps or 1, callback)
        return [text.blocks.tolist(), text.about, text.sha256, text.origins]

    blocks, about, digest, origins = world.share(written)
    return Text(torch.tensor(blocks), about, digest, tuple(origins))


def facts_of(text: Text) -> AnchorFacts:
    return AnchorFacts(text=text.about, sha256=text.sha256, origins=text.origins)


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
        """The number of the block that step 0, 1, 2, … takes."""
        count = len(self.base.text.blocks)
        turn, place = divmod(step, count)
        return int(shuffled(count, STREAM, self.seed, turn)[place])

    def backward(self, batch: Batch | None, step: int, count: float) -> tuple[float, float]:
        """Add the gradients of a batch's losses divided by `count`, and those of the anchor; return both losses, the
        anchor's without its weight."""
        text, rows = self.base.block(self.block(step))
        loss, apart = self.base.backend.anchored(batch, text, rows)
        (loss / count + self.weight * apart / text.tokens).backward()
        return loss.item() / count, apart.item() / text.tokens
