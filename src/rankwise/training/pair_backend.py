"""A backend over pairs of answers: the eager or the fused one computes log-probabilities, the objective compares them.

What the compared pairs came to beside their loss, the margin and how many are right, adds up in a tally that whoever
records a step or a validation clears and reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rankwise.data.batches import Batch
from rankwise.objectives.pair_losses import PairLosses
from rankwise.objectives.preference import Preference, log_probabilities
from rankwise.runs.manifest import BackendName
from rankwise.runs.records import silent
from rankwise.text.tokenize import Tokens
from rankwise.training.backend import Backend, Eager, Fused
from rankwise.training.losses import PairTally


@dataclass(frozen=True)
class PairBackend:
    inner: Eager | Fused
    objective: Preference
    tally: PairTally = field(default_factory=PairTally)

    @property
    def name(self) -> BackendName:
        return self.inner.name

    @property
    def is_flat(self) -> bool:
        return isinstance(self.inner, Fused)

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return (self.objective.flat if self.is_flat else self.objective.batches)(rows, max_tokens)

    def log_probabilities(self, batch: Batch) -> Tensor:
        """(N,) of the batch's targets; inside `active`."""
        if isinstance(self.inner, Fused):
            return self.inner.log_probabilities(batch)
        return log_probabilities(self.objective.predict(self.inner.work.module, batch), batch)

    def loss(self, batch: Batch) -> Tensor:
        compared = self.objective.losses(self.log_probabilities(batch), batch)
        self._count(compared)
        return compared.losses.sum()

    def _count(self, compared: PairLosses) -> None:
        margins = compared.margins
        right = (margins > 0).float() + 0.5 * (margins == 0)
        self.tally.add(len(margins), margins.sum().item(), right.sum().item())

    def divergence(self, batch: Batch) -> tuple[float, int]:
        """KL(base || tuned) in nats, summed over the targets of the batch, and how many these are; inside `active`."""
        with torch.no_grad():
            with self.inner.work.trainable.base():
                rows = self.inner.base_rows(batch)
            return self.inner.anchored(None, batch, rows)[1].item(), int(batch.loss_mask.sum())

    def active(self) -> AbstractContextManager[None]:
        return self.inner.active()

    def start(self) -> AbstractContextManager[None]:
        """Inside, the model is the base that a new training begins with. All weights of a model that learns whole are
        still the base's."""
        trainable = self.inner.work.trainable
        return trainable.base() if trainable.extra_parameters else nullcontext()

    def reading(self) -> PairBackend:
        """The same for rows that are only read: nothing is recomputed, and nothing is reported."""
        work = replace(self.inner.work, activation_checkpointing=0, callback=silent)
        return PairBackend(replace(self.inner, work=work), self.objective)


def over_rows(backend: Backend, objective: object) -> Backend:
    """The backend itself, or one over pairs where rows are pairs."""
    if not isinstance(objective, Preference):
        return backend
    assert isinstance(backend, Eager | Fused), "a language model is trained by one of these"
    return PairBackend(backend, objective)
