"""A run is measured while it trains; it may end because of that, and the best of its steps may be what is kept.

What was best so far lies as a snapshot in the run's folder, and which one it is follows from the records alone
(training/early_stopping.py). Two are kept at most: the best, and the best at the last checkpoint, from which a run may
go on. With AdaLoRA an evaluation counts once the ranks are decided: before that the adapter is larger than its budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError, TrainingError
from rankwise.evaluation.metrics import METRICS
from rankwise.methods.trainable import Trainable
from rankwise.runs.directory import RunDirectory
from rankwise.runs.records import Callback, LossRecord, StatusMessage
from rankwise.training.checkpoints import check_snapshot, load_snapshot, save_snapshot
from rankwise.training.early_stopping import Evaluated, Judge, Judged
from rankwise.training.measuring import Measuring
from rankwise.training.state import TrainState


@dataclass(frozen=True)
class Tracked:
    """What the evaluations of a run came to. `after` is of the step that is kept."""

    before: LossRecord | None
    after: LossRecord | None
    kept_step: int
    kept_why: str
    ended_early: str | None


@dataclass
class Tracking:
    """`records` are the evaluations so far, those of an earlier process too."""

    spec: ValidationConfig
    interval: int
    judge: Judge
    measuring: Measuring
    run: RunDirectory
    hear: Callback
    records: list[Evaluated] = field(default_factory=list)
    ended: str | None = None

    def begin(self) -> None:
        """Before the first step."""
        self._evaluate(0, learning=False)
        self._sample(0)

    def is_due(self, state: TrainState) -> bool:
        """Whether there is an evaluation after this step."""
        return state.finished or state.step % self.interval == 0

    def after_step(self, state: TrainState) -> None:
        """Before a checkpoint of this step, which so stands for an evaluation that is whole."""
        if self.is_due(state):
            self._evaluate(state.step, learning=True)
            self._keep(state)
            self._end(state)

    def choose(self, state: TrainState) -> Tracked:
        """After the last step: the best of them again, where that is wanted and another."""
        step, why = state.step, "the last step"
        best = self.judge.best(self.records)
        if self.spec.keep == "best" and best is not None:
            step, why = best.step, self._praise(best)
            if step != state.step:
                load_snapshot(state, self.run.snapshot(step))
                self.hear(StatusMessage(f"kept is the adapter after step {step}, not {state.step}: {why}"))
        return Tracked(self._loss(0), self._loss(step), step, why, self.ended)

    def close(self, tracked: Tracked) -> None:
        """What is kept answers."""
        self._sample(tracked.kept_step)

    def _evaluate(self, step: int, *, learning: bool) -> None:
        for record in self.measuring.evaluate(step, learning=learning):
            _check_loss(record)
            self.records.append(record)
            self.hear(record)

    def _sample(self, step: int) -> None:
        for record in self.measuring.samples(step):
            self.hear(record)

    def _keep(self, state: TrainState) -> None:
        """A snapshot where this step is the best so far; the one before it may still be needed."""
        best = self.judge.best(self.records)
        if self.spec.keep == "best" and best is not None and best.step == state.step and not state.finished:
            save_snapshot(state, self.run.snapshot(state.step))
            before = (self.judge.best(self._until(step)) for step in self.run.steps_saved)
            self.run.forget_snapshots(but=[state.step, *(one.step for one in before if one is not None)])

    def _until(self, step: int) -> list[Evaluated]:
        return [record for record in self.records if record.step <= step]

    def _end(self, state: TrainState) -> None:
        waited = self.judge.waited(self.records)
        if self.spec.patience is not None and waited >= self.spec.patience and not state.finished:
            state.ended = True
            self.ended = f"{waited} evaluations without a better {self._measure} (evaluation.patience)"
            self.hear(StatusMessage(f"ended after step {state.step} of {state.steps}: {self.ended}"))

    @property
    def _measure(self) -> str:
        return "held-out loss" if self.spec.by == "loss" else self.spec.by

    def _praise(self, best: Judged) -> str:
        order = "highest" if self.judge.more_is_better else "lowest"
        count = len(self.judge.candidates(self.records))
        return f"the {order} {self._measure} of {count} evaluations, {best.value:.4f}"

    def _loss(self, step: int) -> LossRecord | None:
        return next((one for one in self.records if isinstance(one, LossRecord) and one.step == step), None)


def _check_loss(record: Evaluated) -> None:
    """A loss that is no number stops a training, on held-out rows as on those that are learned."""
    if isinstance(record, LossRecord) and not math.isfinite(record.loss):
        when = f"after step {record.step}" if record.step else "before the first step"
        raise TrainingError(
            f"the held-out loss {when} is {record.loss}. Try --set model.dtype=float32"
            f"{' or a lower learning rate' if record.step else ''}, with --restart."
        )


def judge_of(spec: ValidationConfig, trainable: Trainable) -> Judge:
    return Judge(spec.by, METRICS[spec.by].more_is_better, trainable.first_final_step)


def refuse_no_choice(spec: ValidationConfig, interval: int, judge: Judge, steps: int) -> None:
    """Before a run begins: among fewer than two there is no best."""
    count = len([step for step in range(interval, steps, interval) if step >= judge.first]) + 1
    if spec.keep == "best" and count < 2:
        ranks = f", of which the ranks are decided after {judge.first}" if judge.first > 1 else ""
        raise ConfigError(
            [
                f"evaluation.keep is best, and of the {steps} steps{ranks} only the last would be evaluated, with "
                f"{interval} from one evaluation to the next. Set evaluation.steps (--evaluate-every) lower."
            ]
        )


def check_kept(run: RunDirectory, state: TrainState, spec: ValidationConfig, records: Sequence[Evaluated]) -> None:
    """Of a run that goes on: the snapshot of its best step must be there."""
    best = judge_of(spec, state.trainable).best(records)
    if spec.keep == "best" and best is not None:
        check_snapshot(state, run.snapshot(best.step))
