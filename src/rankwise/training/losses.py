"""Stop 7: the loss of a batch is a sum, never a mean: only the step knows how many predictions all its batches hold
together. Next: step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.data.batches import Batch

Loss = Callable[[Batch], Tensor]
"""A batch to the sum of the losses of its `count` predictions."""


@dataclass
class PairTally:
    """Sums over the pairs whose losses were computed since `clear`."""

    pairs: int = 0
    margin: float = 0.0
    right: float = 0.0
    """Pairs whose chosen answer is preferred; one that is undecided counts half."""

    def clear(self) -> None:
        self.pairs, self.margin, self.right = 0, 0.0, 0.0

    def add(self, pairs: int, margin: float, right: float) -> None:
        self.pairs, self.margin, self.right = self.pairs + pairs, self.margin + margin, self.right + right

    def sum_up(self, sums: Callable[[Sequence[float]], list[float]]) -> None:
        """Over all processes."""
        pairs, self.margin, self.right = sums([self.pairs, self.margin, self.right])
        self.pairs = round(pairs)

    @property
    def means(self) -> dict[str, float]:
        """By the names that records give them."""
        return {"preference_accuracy": self.right / self.pairs, "margin": self.margin / self.pairs}


@torch.no_grad()
def sum_loss(loss_of: Loss, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """The sum of the losses of all batches, and the number of predictions."""
    total, count = 0.0, 0.0
    for batch in batches:
        total, count = total + loss_of(batch.to(device)).item(), count + batch.count
    return total, count


def mean_loss(loss_of: Loss, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """The loss of a prediction over all batches, and the number of predictions."""
    total, count = sum_loss(loss_of, batches, device)
    return total / count, count
