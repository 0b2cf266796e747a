"""An anchor to the base: what a step learns from its rows, plus how far it has moved from the base on other text.

    loss = mean over the rows' predictions of -log p  +  weight * mean over the text's tokens of KL(base || tuned)

The base is the same weights with the adapter switched off, so it costs no memory. The text is one that the base writes
itself, or one that is given, and is cut into blocks; which one a step takes is a function of (seed, step) alone. What
the base says of a block never changes, so it is computed once and stays as long as there is room for it. The fast form
computes the block in one row with the step's documents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from rankwise.config.anchor import BLOCKS, AnchorConfig
from rankwise.config.training import TrainingConfig
from rankwise.data.batches import Batch
from rankwise.evaluation.text import Text, cut, read_text
from rankwise.forward.prefix_cache import StateCache
from rankwise.inference.own_text import own_blocks
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.runs.manifest import AnchorFacts
from rankwise.runs.records import Callback
from rankwise.training.backend import AnchoredBackend

OWN = "text that the base model wrote itself"
STREAM = 0xA17C
"""Sets the order of blocks apart from that of rows, which the same seed decides."""


def anchor_text(config: AnchorConfig, model: LoadedModel, steps: int, callback: Callback) -> Text:
    """Where no text is named, the base writes one: `model` must be as it was before it learned. DataError where a text
    has fewer than two blocks."""
    if config.text is not None:
        return cut(read_text(config.text), model, blocks=BLOCKS, length=config.tokens, least=2)
    length = min(config.tokens, model.context_length or config.tokens)
    blocks = own_blocks(model, min(BLOCKS, steps), length, callback)
    about = f"{OWN}: {len(blocks)} blocks of {length} tokens"
    return Text(blocks, about, sha256(blocks.numpy().tobytes()).hexdigest(), ())


def text_of_run(config: TrainingConfig, model: LoadedModel, trainable: Trainable, callback: Callback) -> Text | None:
    """None where the run is not held to its base."""
    if config.anchor is None:
        return None
    with trainable.base():
        return anchor_text(config.anchor, model, config.steps or 1, callback)


def facts_of(text: Text) -> AnchorFacts:
    return AnchorFacts(text=text.about, sha256=text.sha256, origins=text.origins)


@dataclass
class Anchor:
    text: Text
    weight: float
    seed: int
    trainable: Trainable
    backend: AnchoredBackend
    most: int
    """Tokens that may be computed at once."""
    room: int
    """Bytes for what the base says of the blocks."""
    _base: StateCache = field(init=False)

    def __post_init__(self) -> None:
        self._base = StateCache(self.room)

    def joins(self, batch: Batch) -> bool:
        """Whether the block of a step goes into one row with this batch."""
        apart = self.trainable.sets_apart
        return self.backend.joins and not apart and batch.size + self.text.length <= self.most

    def block(self, step: int) -> int:
        """The number of the block that step 0, 1, 2, … takes."""
        count = len(self.text.blocks)
        turn, place = divmod(step, count)
        return int(np.random.default_rng([STREAM, self.seed, turn]).permutation(count)[place])

    def backward(self, batch: Batch | None, step: int, count: float, device: torch.device) -> tuple[float, float]:
        """Add the gradients of a batch's losses divided by `count`, and those of the anchor; return both losses, the
        anchor's without its weight."""
        number = self.block(step)
        text = text_batch(self.text, number).to(device)
        base = self._base.of(str(number).encode(), lambda: self._base_rows(text))
        loss, apart = self.backend.anchored(batch, text, base)
        (loss / count + self.weight * apart / text.tokens).backward()
        return loss.item() / count, apart.item() / text.tokens

    @torch.no_grad()
    def _base_rows(self, text: Batch) -> Tensor:
        """Dropout of the adapter is part of the adapter, which is off."""
        with self.trainable.base():
            return self.backend.base_rows(text)


def text_batch(text: Text, number: int) -> Batch:
    """A block alone, in which every token is predicted."""
    block, length = text.blocks[number][None], text.length
    return Batch.of_tokens(block[:, :-1], block[:, 1:], length, torch.arange(length)[None], (length,))
