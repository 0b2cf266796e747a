"""Hooks of a run besides validation: write down every record, save checkpoints, report to whoever waits, and end the
training with a result where somebody asks for it: the step that it is at becomes its last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rankwise.runs.directory import BY_REQUEST, RunDirectory, forget_end_request, is_asked_to_end
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import Callback, Event, Record, StatusMessage, WarningMessage
from rankwise.runs.resumable import METRICS
from rankwise.training.back_off import LossWatch, by_steps, ways_back
from rankwise.training.checkpoints import save
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.validation import Validation


@dataclass(frozen=True)
class EndByRequest(Hook):
    """Comes before the validation, which then measures the last step. In a run of one process."""

    run: RunDirectory
    validation: Validation

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if state.finished or not is_asked_to_end(self.run):
            return
        forget_end_request(self.run)
        state.ended = True
        self.validation.stopped_early = f"{BY_REQUEST} after step {state.step} of {state.steps}"
        trainer.emit(StatusMessage(f"ended {self.validation.stopped_early}"))
        if (ranks := trainer.trainable.end_early(state.step - 1, state.optimizer)) is not None:
            trainer.emit(ranks)
            trainer.emit(WarningMessage(
                f"the run was ended after step {state.step}, before its ranks were decided: the adapter has "
                f"{sum(ranks.ranks.values()):,} ranks, more than its budget"
            ))  # fmt: skip


SHARE, MOST_SHARE = 0.01, 0.05
"""Of a run's time that checkpoints take: as a rule, and where one takes so long that it would be more."""
OFTEN = 0.2
"""Of the longest time between two: no two are nearer to each other, however little one takes."""


@dataclass(frozen=True)
class LogMetrics(Hook):
    log: MetricsLog

    def on_event(self, event: Event) -> None:
        if isinstance(event, Record):
            self.log.append(event.as_row())


@dataclass
class CheckpointPace:
    """When checkpoints are written: each `interval` steps, and so that at most `longest` seconds of work are lost: as
    often as SHARE and OFTEN allow, and never so often that MOST_SHARE of the time goes into them."""

    interval: int | None
    longest: float | None
    took: float
    """Seconds of the last checkpoint; of the first, what its size lets expect."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._since = self.clock()

    def is_due(self, step: int, ahead: float = 0.0) -> bool:
        """After `step`, which ends in `ahead` seconds."""
        if self.interval is not None and step % self.interval == 0:
            return True
        if self.longest is None:
            return False
        wanted = min(self.longest, max(OFTEN * self.longest, self.took / SHARE))
        return self.clock() + ahead - self._since >= max(wanted, self.took / MOST_SHARE)

    def has_written(self, since: float) -> None:
        self._since = self.clock()
        self.took = self._since - since


@dataclass(frozen=True)
class SaveCheckpoints(Hook):
    """When the pace says so and before a stop, but not after the last step; the newest `count` are there, so that a
    damaged one is no loss.

    None is saved while the loss is far above its past. Where a run would go back, two more are there (back_off.py).
    After each step the lock is looked at, so that nothing is written over the work of another process.
    """

    run: RunDirectory
    pace: CheckpointPace
    count: int
    log: MetricsLog
    watch: LossWatch
    backs_off: bool = False
    keeps = True

    def is_due(self, step: int, ahead: float) -> bool:
        return self.pace.is_due(step, ahead)

    def after_step(self, trainer: Trainer) -> None:
        self.run.check_lock()

    def keep(self, trainer: Trainer) -> None:
        if self.watch.far_above:
            return
        state, began = trainer.state, self.pace.clock()
        trainer.check_finite()
        self.log.sync()
        for moved in self.run.checkpoints.make_way(state.step):
            trainer.emit(StatusMessage(moved))
        save(state, self.run.checkpoint(state.step), self.run.files | {METRICS: self.run.metrics.read_bytes()})
        saved = self.run.steps_saved
        earlier = ways_back(by_steps(saved, self.pace.interval), state.step) if self.backs_off else []
        self.run.checkpoints.forget(but=[*earlier, *saved[-self.count :]])
        self.pace.has_written(since=began)


@dataclass(frozen=True)
class FollowCheckpoints(Hook):
    """In a process that does not write: looks where SaveCheckpoints of the first one does, so that both end at the same
    step, and gives its part of each checkpoint where what learns is split."""

    watch: LossWatch
    gives: bool
    keeps = True

    def keep(self, trainer: Trainer) -> None:
        if not self.watch.far_above:
            trainer.check_finite()
            if self.gives:
                save(trainer.state, None)


@dataclass(frozen=True)
class Report(Hook):
    callback: Callback

    def on_event(self, event: Event) -> None:
        self.callback(event)
