"""Hooks of a run besides validation: write down every record, save checkpoints, report to whoever waits."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import Callback, Event, ProgressUpdate, StatusMessage, WarningMessage
from rankwise.runs.resumable import METRICS
from rankwise.training.back_off import ways_back
from rankwise.training.checkpoints import save
from rankwise.training.loss_watch import LossWatch
from rankwise.training.trainer import Hook, Trainer


@dataclass(frozen=True)
class LogMetrics(Hook):
    log: MetricsLog

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StatusMessage | WarningMessage | ProgressUpdate):
            self.log.append(event.as_row())


@dataclass(frozen=True)
class SaveCheckpoints(Hook):
    """Every `interval` steps, but not after the last; the newest `count` are there, so that a damaged one is no loss.

    None is saved while the loss is far above its past. Where a run would go back, two more are there (back_off.py).
    After each step the lock is looked at, so that nothing is written over the work of another process.
    """

    run: RunDirectory
    interval: int
    count: int
    log: MetricsLog
    watch: LossWatch
    backs_off: bool = False

    def after_step(self, trainer: Trainer) -> None:
        self.run.check_lock()
        state = trainer.state
        if state.finished or state.step % self.interval or self.watch.far_above:
            return
        trainer.check_finite()
        self.log.sync()
        if (aside := self.run.checkpoints.make_way(state.step)) is not None:
            trainer.emit(StatusMessage(f"{self.run.checkpoint(state.step)} was in the way and is now {aside.name}"))
        save(state, self.run.checkpoint(state.step), self.run.files | {METRICS: self.run.metrics.read_bytes()})
        saved = self.run.steps_saved
        earlier = ways_back(saved, state.step) if self.backs_off else []
        self.run.checkpoints.forget(but=[*earlier, *saved[-self.count :]])


@dataclass(frozen=True)
class FollowCheckpoints(Hook):
    """In a process that does not write: looks where SaveCheckpoints of the first one does, so that both end at the same
    step, and gives its part of each checkpoint where what learns is split."""

    interval: int
    watch: LossWatch
    gives: bool

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if not (state.finished or state.step % self.interval or self.watch.far_above):
            trainer.check_finite()
            if self.gives:
                save(state, None)


@dataclass(frozen=True)
class Report(Hook):
    callback: Callback

    def on_event(self, event: Event) -> None:
        self.callback(event)
