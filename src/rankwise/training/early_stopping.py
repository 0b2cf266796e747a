"""Which validation was the best, and how many came since: a pure function of what was recorded.

So no checkpoint stores any of it, and a resumed run decides as one that never stopped. The start is a candidate
where `first` is 0. Of equal values the earlier step stays the best, and a value that is not finite never is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rankwise.runs.records import LossRecord, ScoreRecord

Validated = LossRecord | ScoreRecord


@dataclass(frozen=True)
class Candidate:
    step: int
    value: float


@dataclass(frozen=True)
class EarlyStopping:
    """`by` is "loss" or a metric; candidates are validations after step `first` or later, where 0 is before any step.
    `patience` is how many of them in a row may be no better than the best."""

    by: str
    more_is_better: bool
    first: int = 1
    patience: int | None = None

    def candidates(self, records: Iterable[Validated]) -> list[Candidate]:
        every = [
            Candidate(record.step, record.loss if isinstance(record, LossRecord) else record.value)
            for record in records
            if ("loss" if isinstance(record, LossRecord) else record.metric) == self.by
        ]
        return [candidate for candidate in every if candidate.step >= self.first]

    def best(self, records: Iterable[Validated]) -> Candidate | None:
        finite = [candidate for candidate in self.candidates(records) if math.isfinite(candidate.value)]
        sign = -1 if self.more_is_better else 1
        return min(finite, key=lambda candidate: (sign * candidate.value, candidate.step), default=None)

    def without_improvement(self, records: Iterable[Validated]) -> int:
        """How many candidates came after the best one."""
        known = list(records)
        best = self.best(known)
        return sum(best is None or candidate.step > best.step for candidate in self.candidates(known))

    def is_over(self, records: Iterable[Validated]) -> bool:
        return self.patience is not None and self.without_improvement(records) >= self.patience
