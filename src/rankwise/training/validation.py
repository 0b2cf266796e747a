"""Validation between steps: it may stop a run early, and decides which step's weights are the result.

The best weights so far lie as a snapshot in the run's folder, and which step they are of follows from the records
alone. At most two snapshots exist: the best, and the best at the last checkpoint, from which a run may go on. So no
checkpoint stores any of it, and a resumed run decides as one that never stopped. With AdaLoRA a validation counts once
the ranks are decided: before that the adapter is larger than its budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Protocol

from rankwise.base.loaded import LoadedModel
from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError, TrainingError
from rankwise.evaluation.intervals import measured_share
from rankwise.evaluation.metrics import METRICS
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.preparation import Prepared
from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import History
from rankwise.runs.records import LossRecord, SampleRecord, ScoreRecord, StatusMessage, WarningMessage
from rankwise.training.checkpoints import check_snapshot, load_snapshot, save_snapshot
from rankwise.training.losses import Backend, sum_loss
from rankwise.training.state import Diverged, TrainState
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.validation_classes import calibrate
from rankwise.training.world import ONE_PROCESS, World, filled_up

Validated = LossRecord | ScoreRecord
RISEN = 1.05
"""Above how many times the lowest validation loss that of the result is remarked on."""


@dataclass(frozen=True)
class EarlyStopping:
    """`by` is "loss" or a metric; candidates are validations after step `first` or later, where 0 is before any step.
    `patience` is how many of them in a row may be no better than the best."""

    by: str
    more_is_better: bool
    first: int = 1
    patience: int | None = None

    @classmethod
    def of(cls, config: ValidationConfig, trainable: Trainable, earliest: int) -> EarlyStopping:
        """`earliest` is the first step whose result may be the best one, where the method has no later one."""
        first = trainable.first_final_step
        by, first = config.by, earliest if first == 1 else first
        return cls(by, METRICS[by].more_is_better, first, config.patience)

    def candidates(self, records: Iterable[Validated]) -> list[Validated]:
        return [record for record in records if record.metric == self.by and record.step >= self.first]

    def best(self, records: Iterable[Validated]) -> Validated | None:
        finite = [record for record in self.candidates(records) if math.isfinite(record.value)]
        sign = -1 if self.more_is_better else 1
        return min(finite, key=lambda record: (sign * record.value, record.step), default=None)

    def without_improvement(self, records: Iterable[Validated]) -> int:
        """How many candidates came after the best one."""
        known = list(records)
        best = self.best(known)
        return sum(best is None or candidate.step > best.step for candidate in self.candidates(known))

    def is_over(self, records: Iterable[Validated]) -> bool:
        return self.patience is not None and self.without_improvement(records) >= self.patience


class Scorer(Protocol):
    """Measures at each validation what the loss does not show. It is made before a run begins."""

    @property
    def tokens_written(self) -> int:
        """Tokens that one validation generates at most; 0 where none are generated."""
        ...

    def over(self, world: World, backend: Backend, max_tokens: int) -> Scorer:
        """The scorer for this backend, once it is known, computing at most `max_tokens` tokens at once. Of several
        processes each computes its share; all have the scores."""
        ...

    def scores(self, step: int) -> list[ScoreRecord]: ...

    def samples(self, step: int) -> list[SampleRecord]:
        """What the model answers to a few fixed prompts, before the first step and after the last."""
        ...


SCORERS = {
    "answers": "rankwise.training.validation_prompts:answer_scorer", "pairs": "rankwise.training.pairs:pair_scorer",
    "classes": "rankwise.training.validation_classes:class_scorer",
}  # fmt: skip
"""By the family of an objective, what scores its validation rows; imported when it is used."""


OVER = {"answers": None, "classes": None, "pairs": "rankwise.training.pairs:PairBackend"}
"""By the family, what computes the losses of its rows over the backend of its model; None for that backend."""
COMPARED = {"answers": None, "classes": None, "pairs": "rankwise.training.pairs:compare_with_base"}
"""By the family, what a training computes with the model as it begins; None for nothing."""


def over_rows(backend: Backend, objective: Objective) -> Backend:
    over = objective.among(OVER)
    return backend if over is None else resolve_name(over)(backend, objective.loss)


def scorer_of(objective: Objective, config: ValidationConfig, model: LoadedModel, prepared: Prepared) -> Scorer:
    return resolve_name(objective.among(SCORERS))(config, model, prepared, objective)


@dataclass
class Validation(Hook):
    """`batches` are the `rows` validation rows; `records` are all validations so far, an earlier process's too."""

    config: ValidationConfig
    interval: int
    early_stopping: EarlyStopping
    batches: Sequence[Batch]
    rows: int
    scorer: Scorer
    run: RunDirectory
    backend: Backend
    """What computes the losses of `batches`."""
    unit: str
    """The unit of the loss."""
    world: World = ONE_PROCESS
    """`batches` are this process's share of the rows."""
    records: list[Validated] = field(default_factory=list)
    result_step: int = 0
    result_why: str = "the last step"
    stopped_early: str | None = None
    temperature: float | None = None
    """What a classifier's head is divided by in the result."""
    calibrated: LossRecord | None = None
    """The result's loss after that."""

    def before_first_step(self, trainer: Trainer) -> None:
        self._validate_now(trainer)
        if self.early_stopping.first == 0:
            self._save_best(trainer.state)
        self._sample(trainer, 0)

    def after_step(self, trainer: Trainer) -> None:
        """Before a checkpoint of this step, which so contains the whole validation."""
        state = trainer.state
        if not (state.finished or state.step % self.interval == 0):
            return
        trainer.check_finite()
        self._validate_now(trainer)
        self._save_best(state)
        if self.early_stopping.is_over(self.records) and not state.finished:
            state.ended = True
            self.stopped_early = (
                f"{self.early_stopping.without_improvement(self.records)} validations without a better {self._measure} "
                "(validation.patience)"
            )
            trainer.emit(StatusMessage(f"ended after step {state.step} of {state.steps}: {self.stopped_early}"))

    def after_last_step(self, trainer: Trainer) -> None:
        """Restore the best step's weights, where these are wanted and another's."""
        self.result_step, best = trainer.state.step, self.early_stopping.best(self.records)
        if self.config.keep == "best" and best is not None:
            self.result_step, self.result_why = best.step, self._praise(best)
            trainer.learned = best.step > 0
            if best.step != trainer.state.step:
                self.world.barrier()  # the first process has written it
                load_snapshot(trainer.state, self.run.snapshots.path(best.step))
                told = f"the adapter after step {best.step}, not that after step {trainer.state.step}"
                told = told if best.step else "the head that training began with, which no step improved"
                trainer.emit(StatusMessage(f"the result is {told}: {self.result_why}"))
        self._calibrate(trainer)

    def _calibrate(self, trainer: Trainer) -> None:
        """A classifier's result; and say whether it was surer than it was right."""
        kept, lowest = self.loss_after(self.result_step), [one.value for one in self.records if one.metric == "loss"]
        with trainer.aside():
            self.temperature, told = calibrate(self.scorer)
            if not told or kept is None:
                return
            if self.temperature is not None:
                self.calibrated = self._loss(trainer, self.result_step)
                told += f": a validation loss of {self.calibrated.loss:.4f} instead of {kept.loss:.4f}"
        kind = StatusMessage
        if kept.loss > RISEN * min(lowest):
            kind = StatusMessage if self.temperature else WarningMessage
            told = f"the result is surer than it is right, as its validation loss was {min(lowest):.4f} earlier; {told}"
        trainer.emit(kind(told))

    def after_training(self, trainer: Trainer) -> None:
        self._sample(trainer, self.result_step)

    def take_up(self, history: History) -> None:
        self.records = validations_in(history)

    def loss_after(self, step: int) -> LossRecord | None:
        losses = (record for record in self.records if isinstance(record, LossRecord))
        return next((record for record in losses if record.step == step), None)

    def score_after(self, step: int, metric: str) -> ScoreRecord | None:
        scores = (record for record in self.records if isinstance(record, ScoreRecord) and record.metric == metric)
        return next((record for record in scores if record.step == step), None)

    def measure_again(self, trainer: Trainer) -> None:
        """After the result was changed: its measurements take the place of those of its step."""
        records = self._validate(trainer, self.result_step)
        self.records = [*(one for one in self.records if one.step != self.result_step), *records]

    def _validate_now(self, trainer: Trainer) -> None:
        for record in self._validate(trainer, trainer.state.step):
            self.records.append(record)
            trainer.emit(record)

    def _validate(self, trainer: Trainer, step: int) -> list[Validated]:
        for record in (records := self.validate(trainer, step)):
            _check_loss(record)
        return records

    def validate(self, trainer: Trainer, step: int) -> list[Validated]:
        """Whatever it comes to, and without a trace in `records`."""
        with trainer.aside():
            losses = [self._loss(trainer, step)] if self.rows else []
            return [*self.scorer.scores(step), *losses]

    def _loss(self, trainer: Trainer, step: int) -> LossRecord:
        if (tally := self.backend.tally) is not None:
            tally.clear()
        batches = filled_up(self.batches, self.world, self.backend.layout) if trainer.sharded else self.batches
        total, count = self.world.sums(sum_loss(self.backend.loss, batches, trainer.state.device))
        if tally is not None:
            tally.sum_up(self.world.sums)
        return LossRecord(
            step=step, loss=total / count, loss_tokens=max(1, round(count)), sequences=self.rows, unit=self.unit
        )

    def _sample(self, trainer: Trainer, step: int) -> None:
        with trainer.aside():
            samples = self.scorer.samples(step)
        for record in samples:
            trainer.emit(record)

    def _save_best(self, state: TrainState) -> None:
        """A snapshot where this step is the best so far; the one before it may still be needed."""
        best = self.early_stopping.best(self.records)
        if self.config.keep == "best" and best is not None and best.step == state.step and not state.finished:
            if not self.world.is_first:
                if state.is_split:
                    save_snapshot(state, None)
                return
            self.run.snapshots.make_way(state.step)
            save_snapshot(state, self.run.snapshots.path(state.step))
            before = (self.early_stopping.best(self._until(step)) for step in self.run.steps_saved)
            self.run.snapshots.forget(but=[state.step, *(one.step for one in before if one is not None)])

    def _until(self, step: int) -> list[Validated]:
        return [record for record in self.records if record.step <= step]

    @property
    def _measure(self) -> str:
        return "validation loss" if self.config.by == "loss" else self.config.by

    def _praise(self, best: Validated) -> str:
        order = "highest" if self.early_stopping.more_is_better else "lowest"
        count = len(self.early_stopping.candidates(self.records))
        praise = f"the {order} {self._measure} of {count} validations, {best.value:.4f}"
        rows = best.n if isinstance(best, ScoreRecord) and best.metric == "accuracy" else 0
        if (share := measured_share(best.value * rows, rows)) is None:
            return praise
        interval = f"95 % interval {share.low:.3f} to {share.high:.3f}"
        return f"{praise} on {rows:,} rows ({interval}; expect a little less on new rows)"


def validations_in(history: History) -> list[Validated]:
    return [*history.losses, *history.scores]


def _check_loss(record: Validated) -> None:
    """An error where a loss is not a number, on validation rows as on training rows: Diverged once steps were made."""
    if not isinstance(record, LossRecord) or math.isfinite(record.loss):
        return
    if record.step == 0:
        raise TrainingError(
            f"the validation loss before the first step is {record.loss}. Try --set model.dtype=float32, with "
            "--restart."
        )
    raise Diverged(
        f"the validation loss after step {record.step} is {record.loss}. Try --set model.dtype=float32 or a lower "
        "learning rate, with --restart.",
        begun=record.step,
    )


def refuse_no_choice(config: ValidationConfig, interval: int, early_stopping: EarlyStopping, steps: int) -> None:
    """Before a run begins: among fewer than two validations there is no best."""
    first = early_stopping.first
    count = len([step for step in range(interval, steps, interval) if step >= first]) + 1
    if config.keep == "best" and config.patience is None and count < 2:  # with patience it may be a default
        ranks = f", of which the ranks are decided after {first}" if first > 1 else ""
        raise ConfigError(
            [
                f"validation.keep is best, and of the {steps} steps{ranks} only the last would be validated, with "
                f"{interval} from one validation to the next. Set validation.steps (--validate-every) lower."
            ]
        )


def check_best(
    run: RunDirectory, state: TrainState, config: ValidationConfig, earliest: int, records: Sequence[Validated]
) -> None:
    """Check that a run that is resumed has a whole snapshot of its best step. RunError where it has none."""
    best = EarlyStopping.of(config, state.trainable, earliest).best(records)
    if config.keep == "best" and best is not None:
        check_snapshot(state, run.snapshots.path(best.step))
