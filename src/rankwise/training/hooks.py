"""Hooks of a run besides validation: write down every record, save checkpoints, report to whoever waits."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import Callback, Event, ProgressUpdate, StatusMessage, WarningMessage
from rankwise.training.checkpoints import save
from rankwise.training.trainer import Hook, Trainer


@dataclass(frozen=True)
class LogMetrics(Hook):
    log: MetricsLog

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StatusMessage | WarningMessage | ProgressUpdate):
            self.log.append(event.as_row())


@dataclass(frozen=True)
class SaveCheckpoints(Hook):
    """Every `interval` steps, but not after the last; a checkpoint is removed when the next one is there."""

    run: RunDirectory
    interval: int
    log: MetricsLog

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if state.finished or state.step % self.interval:
            return
        trainer.check_finite()
        self.log.sync()
        save(state, self.run.checkpoint(state.step))
        self.run.forget_checkpoints(but=state.step)


@dataclass(frozen=True)
class Report(Hook):
    callback: Callback

    def on_event(self, event: Event) -> None:
        self.callback(event)
