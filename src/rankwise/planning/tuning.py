"""The trials by which `--tune` chooses a learning rate, and what they cost in steps of the run.

    work(rows) = rows x tokens of a row + 64        of a step; the 64 are what a step takes however few tokens it has
    a trial    = (steps x work(its rows) + the tokens of the rows apart / 2) / work(the run's rows)

A row that is only read costs half of a row that is trained on. All trials together take at most 30 % of a run of up to
100 steps, and less than that from there on, down to 15 % at 300 steps; a sixth of this is left for attaching, comparing
backends and the like. Trials that would be too short are not made. How they are used is in training/extras/tuning.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rankwise.planning.estimate import Estimate
from rankwise.planning.plan import Plan

TOO_COSTLY = "trials long enough to tell something would cost too much of this run"
LEAST_LAST = 10
"""Steps of the longest trials. Those of three and seven told nothing but that lower rates learn less in so few
(lab/tuning.md)."""
FIXED = 64.0
"""Tokens that take as long as what every step does besides."""
SHARE, LATE_SHARE = 0.30, 0.15
LATE_FROM, MOST = 300, 120.0
"""From how many steps on the lower share holds, and steps that trials take at most."""
ROWS, LEAST_ROWS, MOST_ROWS = 2, 16, 64
"""Rows apart, as a multiple of those in a step of the run, and at least and at most."""
OVERHEAD = 1 / 6
READ = 0.5
"""What a row costs that is only read."""
RANGE_STEPS, FIRST, SECOND, LONGER = 8, 4, 2, 2.5
"""Steps of the range, rates of both stages, and by how much the second is longer."""

READINGS = 1 + FIRST + SECOND
"""How often the rows kept apart for the trials are read: before training, and after each trial."""


@dataclass(frozen=True)
class Stage:
    rates: int
    steps: int


@dataclass(frozen=True)
class TrialPlan:
    run_steps: int
    run_batch: int
    """Rows in a step of the run."""
    row_tokens: float
    batch: int
    """Rows in a step of a trial."""
    rows: int
    """Rows apart that each trial is measured on."""
    range_steps: int
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, steps: int, batch: int, row_tokens: float, part: int) -> Self | None:
        """None where trials of that length would cost more than they may: in runs of fewer than 73 steps, or 165 where
        every weight learns, and in somewhat longer ones if steps have few tokens. `part` is the method's
        `trial_part`."""
        part = min(part, batch)
        small = max(1, batch // part)
        budget = most_cost(steps) * (1 - OVERHEAD) * _work(batch, row_tokens)
        rows = min(MOST_ROWS, max(LEAST_ROWS, ROWS * batch), int(budget / (2 * READ * READINGS * row_tokens)))
        range_steps = RANGE_STEPS if part > 1 else RANGE_STEPS // 2
        left = (budget - READ * READINGS * rows * row_tokens) / _work(small, row_tokens) - range_steps
        first, second = int(left / (FIRST + SECOND * LONGER)), int(LONGER * left / (FIRST + SECOND * LONGER))
        if rows < LEAST_ROWS // 2 or first < 2 or second < LEAST_LAST:
            return None
        stages = Stage(FIRST, first), Stage(SECOND, second)
        return cls(steps, batch, row_tokens, batch=small, rows=rows, range_steps=range_steps, stages=stages)

    @property
    def shift(self) -> float:
        """Half octaves by which a trial's rate is above the run's that it stands for."""
        return -math.log2(self.run_batch / self.batch)

    @property
    def trials(self) -> int:
        return sum(stage.rates for stage in self.stages) + 1

    @property
    def cost(self) -> float:
        """In steps of the run."""
        return self.cost_of([self.range_steps, *(stage.steps for stage in self.stages for _ in range(stage.rates))])

    def cost_of(self, trials: Iterable[int]) -> float:
        """That of trials of so many steps each. The rows apart are read once in each."""
        steps = list(trials)
        read = READ * self.rows * self.row_tokens * len(steps)
        return (sum(steps) * _work(self.batch, self.row_tokens) + read) / _work(self.run_batch, self.row_tokens)


def _work(rows: int, row_tokens: float) -> float:
    return rows * row_tokens + FIXED


def most_cost(steps: int) -> float:
    """Steps that the trials of a run may take."""
    if steps <= 100:
        return SHARE * steps
    if steps < LATE_FROM:
        share = (steps - 100) / (LATE_FROM - 100)
        return SHARE * 100 * (1 - share) + LATE_SHARE * LATE_FROM * share
    return min(LATE_SHARE * steps, MOST)


def tuning_of(plan: Plan) -> tuple[TrialPlan | None, Estimate | None] | None:
    """What `--tune` adds to a training: its trials, None where those long enough to tell something would cost too much,
    and seconds, None where the device's speed is not known. None where it is not set or the number of steps is not
    known."""
    training, rows = plan.config.training, plan.rows
    if training.learning_rate != "tune" or plan.steps is None or not plan.trained:
        return None
    batch, row_tokens = training.batch_size, plan.step.tokens / training.batch_size
    if rows is not None and rows.documents.likely:
        batch = training.rows_per_step(max(1, round(rows.documents.likely)))
        row_tokens = rows.tokens.likely / rows.documents.likely
    trials = TrialPlan.of(plan.steps, batch, row_tokens, plan.config.adapter.trial_part)
    if trials is None or plan.duration is None:
        return trials, None
    return trials, plan.duration.step.times(trials.cost)
