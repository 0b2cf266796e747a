"""Which evaluation was the best, and how long ago: a pure function of what was recorded.

So nothing of it is held in a checkpoint, and a run that goes on judges as one that never stopped. The untrained start
is no candidate. Equal values leave the earlier step the best, and one that is not finite is never best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rankwise.runs.records import LossRecord, ScoreRecord

Evaluated = LossRecord | ScoreRecord


@dataclass(frozen=True)
class Judged:
    step: int
    value: float


@dataclass(frozen=True)
class Judge:
    """`by` "loss" or the name of a score; candidates are evaluations after step `first` or later."""

    by: str
    more_is_better: bool
    first: int = 1

    def candidates(self, records: Iterable[Evaluated]) -> list[Judged]:
        found = [
            Judged(one.step, one.loss if isinstance(one, LossRecord) else one.value)
            for one in records
            if ("loss" if isinstance(one, LossRecord) else one.metric) == self.by
        ]
        return [one for one in found if one.step >= max(1, self.first)]

    def best(self, records: Iterable[Evaluated]) -> Judged | None:
        finite = [one for one in self.candidates(records) if math.isfinite(one.value)]
        sign = -1 if self.more_is_better else 1
        return min(finite, key=lambda one: (sign * one.value, one.step), default=None)

    def waited(self, records: Iterable[Evaluated]) -> int:
        """How many candidates have come since the best."""
        known = list(records)
        best = self.best(known)
        return sum(best is None or one.step > best.step for one in self.candidates(known))
