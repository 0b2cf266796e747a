"""Stop 5: Tokens into tensors, and which rows make which step. Next: adapters/wrapper.py.

Rows are padded on the right. A causal model's real tokens cannot see what stands to their right, so padding needs
no attention mask and the id it has does not matter. Which rows a step holds is a function of (seed, step) alone.
Inside a step the rows are sorted by length and portioned so that no portion computes more than a given number of
padded tokens; the step's loss is a sum over all of them, so the portions change nothing but memory and padding.
How the rows of a step are laid out comes in as a value: padded, as here, or several to a row, as in packing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rankwise.text.tokenize import Tokens

IGNORED = -100
ROUND_TO = 8


@dataclass(frozen=True)
class Batch:
    """`inputs` (B, T); `targets` (B, T) is the next token where it is learned and IGNORED elsewhere."""

    inputs: Tensor
    targets: Tensor
    tokens: int
    """Without padding."""
    positions: Tensor | None = None
    """(B, T), the place of each token in its document; None where each row holds one document, from its first."""
    lengths: tuple[int, ...] | None = None
    """Of the documents, where they lie one behind the other in a single row (flat.py)."""

    @property
    def supervised(self) -> Tensor:
        """(B, T), true where there is something to predict."""
        return self.targets != IGNORED

    def to(self, device: torch.device | str) -> Batch:
        positions = None if self.positions is None else self.positions.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), self.tokens, positions, self.lengths)


def asked(row: Tokens) -> int:
    """A row of n tokens asks n - 1 questions; a single token asks nothing."""
    return max(len(row.ids) - 1, 0)


def rounded(length: int) -> int:
    """Up to the width that is computed."""
    return -(-length // ROUND_TO) * ROUND_TO


def padded_length(row: Tokens) -> int:
    return rounded(asked(row))


def questions(row: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Each token but the last is an input; each but the first a target where it is learned, else IGNORED."""
    ids = np.asarray(row.ids, dtype=np.int64)
    return ids[:-1], np.where(np.asarray(row.learned, dtype=bool)[1:], ids[1:], IGNORED)


def collate(rows: Sequence[Tokens]) -> Batch:
    width = max(padded_length(row) for row in rows)
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        inputs[index, : asked(row)], targets[index, : asked(row)] = questions(row)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), sum(asked(row) for row in rows))


def real_places(rows: Sequence[Tokens]) -> Tensor:
    """(B, T), true where collated rows have a token and no padding."""
    width = max(padded_length(row) for row in rows)
    return torch.arange(width) < torch.tensor([asked(row) for row in rows])[:, None]


def portion(rows: Sequence[Tokens], padded_tokens: int) -> list[Batch]:
    return [collate(part) for part in portions_of(rows, padded_tokens)]


def portions_of(rows: Sequence[Tokens], padded_tokens: int) -> list[list[Tokens]]:
    """Rows of like length together, longest first, so that what is too large for memory fails at once."""
    portions: list[list[Tokens]] = []
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        if not portions or padded_length(portions[-1][0]) * (len(portions[-1]) + 1) > padded_tokens:
            portions.append([])
        portions[-1].append(row)
    return portions


Arrange = Callable[[Sequence[Tokens], int], list[Batch]]
"""The rows of a step, and how many padded tokens a micro-batch may hold, to its micro-batches."""


@dataclass(frozen=True)
class Batches:
    """The rows of each step, without end: one pass after another, each in its own order."""

    rows: Sequence[Tokens]
    batch_size: int
    max_batch_tokens: int
    seed: int
    arrange: Arrange = portion

    def at(self, step: int) -> list[Batch]:
        """The micro-batches of step 0, 1, 2, …"""
        return self.arrange(self.rows_of(step), self.max_batch_tokens)

    def rows_of(self, step: int) -> list[Tokens]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self.rows[self._row(position)] for position in positions]

    def epoch(self, step: int) -> float:
        return step * self.batch_size / len(self.rows)

    def halve(self, step: int) -> bool:
        """Whether later steps take fewer tokens at once: never here; training/auto_batch.py does."""
        return False

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.rows))
        return int(_order(self.seed, epoch, len(self.rows))[place])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)
