"""Stop 7: the loss of a batch is a sum, never a mean: only the step knows how many predictions all its batches hold
together. Next: step.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.manifest import BackendName

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


class Backend(Protocol):
    @property
    def name(self) -> BackendName: ...

    @property
    def tally(self) -> PairTally | None:
        """What pairs came to beside their losses, where rows are pairs."""
        ...

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """The rows of a step as batches of at most so many tokens."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the losses of a batch; inside `active`."""
        ...

    def active(self) -> AbstractContextManager[None]: ...


class AnchoredBackend(Backend, Protocol):
    """Also computes how far the tuned model is from its base on other text (anchor.py); inside `active`."""

    @property
    def joins(self) -> bool:
        """Whether that text is computed in one row with a batch of the step."""
        ...

    def base_rows(self, text: Batch) -> Tensor:
        """What `anchored` needs of the base, which must be active: one row for each target of the text."""
        ...

    def anchored(self, batch: Batch | None, text: Batch, base: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of a batch's losses, 0 without one, and the sum of the divergence from the base on the text."""
        ...


@dataclass(frozen=True)
class PairReference:
    """Log-probabilities (N, 2) of the chosen and the rejected answer of each row, in float64; nan where none is
    needed."""

    values: np.ndarray

    @property
    def facts(self) -> dict[str, Any]:
        values = [[None if np.isnan(one) else one for one in row] for row in self.values.tolist()]
        return {"values": values, "sha256": self._hash}

    @classmethod
    def read(cls, file: Path, rows: int) -> PairReference | None:
        """None where the file is missing, damaged, or of another number of rows."""
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            reference = cls(np.array(stored["values"], np.float64).reshape(-1, 2))
            same = stored["sha256"] == reference._hash and len(reference.values) == rows
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return reference if same else None

    @property
    def _hash(self) -> str:
        return sha256(np.ascontiguousarray(self.values, "<f8").tobytes()).hexdigest()
