"""What a training that begins with an adapter does to the rounds before it.

    before the first step, after the last      each earlier run's own validation rows: loss and scores

A round is measured as it measured itself (validation.py), by the chat template and the columns of its own rows. What it
had before stands in the metrics log, so a run that is resumed does not measure it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.incompatible import excludes
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import TextMetric, ValidationConfig
from rankwise.errors import ConfigError, DataError, RankwiseError, first_line
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.validation_rows import prepared_again
from rankwise.methods.starting import contents_of
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import objective_for
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparation import Prepared
from rankwise.rows.writing import TextWriting
from rankwise.runs.manifest import EarlierRound, Results
from rankwise.runs.metrics_log import History
from rankwise.runs.records import Callback, EarlierRecord, LossRecord, ScoreRecord, StatusMessage, WarningMessage
from rankwise.runs.snapshot import RunSnapshot
from rankwise.training.backend import Eager, Fused, why_unsupported
from rankwise.training.losses import Backend
from rankwise.training.pairs import PairBackend
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.training import Extra, Training
from rankwise.training.validation import Scorer, Validation, over_rows, scorer_of

MOST_ROWS, ANSWERS = 200, 24
"""Validation rows of all rounds together whose loss is measured, and of each round that are answered."""
NOT_MEASURED = "what becomes of the earlier round {} is not measured: {}"
WORSE = 0.02
"""A loss that rose by more than this share, or a score that fell by more than this, is worth a warning."""


@dataclass(frozen=True)
class EarlierRows:
    """The validation rows of the run `name`, and what scores them."""

    name: str
    objective: Objective
    prepared: Prepared
    scorer: Scorer

    def backend(self, backend: Backend) -> Backend:
        """What computes their losses: that of the run, for another objective where that differs."""
        inner = backend.inner if isinstance(backend, PairBackend) else backend
        if not isinstance(inner, Eager | Fused):
            return inner
        longest = int(self.prepared.measured_rows.lengths.max())
        work = replace(inner.work, objective=self.objective, longest=longest, packing=False)
        if isinstance(inner, Eager) or why_unsupported(work):
            inner = Eager(work)
        return over_rows(inner, self.objective)


def _runs(name: str | None, callback: Callback) -> Iterator[RunSnapshot]:
    after: RunSnapshot | None = None
    while name is not None:
        try:
            run = RunSnapshot.finished(name)
            if after is not None and contents_of(run.result) != after.manifest.lineage[-1].sha256:
                raise DataError("its adapter has changed since")
        except (RankwiseError, OSError) as error:
            callback(StatusMessage(NOT_MEASURED.format(name, first_line(error))))
            return
        yield run
        name, after = run.experiment.adapter.start_from, run


def _rows_of(run: RunSnapshot, model: LoadedModel, most: int, callback: Callback, *, sharded: bool) -> EarlierRows:
    objective = objective_for(run.recorded_data)
    if not run.recorded_data.validation_rows:
        raise DataError("it has no validation rows.")
    if objective.loss.needs_reference:
        raise DataError("the loss of its pairs is relative to another model than this run's.")
    if objective.kind.processing != model.processing:
        raise DataError("its images were prepared otherwise.")
    writing = objective.rows.encoding(model)
    prepared = prepared_again(run, writing, callback)
    prepared = replace(prepared, validation=np.asarray(evenly(prepared.validation.tolist(), most)))
    used = writing.by(run.experiment.data)
    if isinstance(used, TextWriting):
        model = model.with_template(used.template)

    losses = ValidationConfig(prompts=())
    try:
        scorer = scorer_of(objective, losses if sharded else _scored_as(run, objective), model, prepared)
    except ConfigError:  # its answers cannot be scored
        scorer = scorer_of(objective, losses, model, prepared)
    return EarlierRows(run.name, objective, prepared, scorer)


def _scored_as(run: RunSnapshot, objective: Objective) -> ValidationConfig:
    """By the metrics of answers that the run was validated or evaluated with."""
    evaluated = {name for one in run.evaluations.values() for name in one.tuned.scores}
    measured = (
        {}
        if excludes("validation.scores", "objective", objective.name)
        else {*run.experiment.validation.metrics, *evaluated}
    )
    metrics = tuple(name for name in get_args(TextMetric) if name in measured)
    return ValidationConfig(scores=metrics, answers=ANSWERS if metrics else 0, prompts=())


class EarlierRounds(Extra):
    """`training` are the settings of the training that goes on, or None where its objective has no replay, by which
    what gets worse could be kept."""

    def __init__(self, start_from: str, training: TrainingConfig | None, sharded: bool) -> None:
        self.start_from, self.training, self.sharded = start_from, training, sharded

    def attached(self, training: Training) -> None:
        """Prepare the validation rows of the runs that this one goes on from, the latest first. A round whose rows
        cannot be read is left out, and a message names it with the reason."""
        found, callback, world = list[EarlierRows](), training.session.callback, training.session.world
        world.wait_for_turn()
        runs = list(_runs(self.start_from, callback))
        for run in runs:
            try:
                found.append(_rows_of(run, training.base, MOST_ROWS // len(runs), callback, sharded=self.sharded))
            except (RankwiseError, OSError) as error:
                callback(StatusMessage(NOT_MEASURED.format(run.name, first_line(error))))
        world.end_turn()
        everywhere = world.exchange([one.name for one in found])
        self.rounds = [one for one in found if all(one.name in names for names in everywhere)]

    def hooks(self, training: Training, backend: Backend, validation: Validation) -> Sequence[Hook]:
        rounds = [(rows, training.validated(rows.backend(backend), rows.prepared, rows.scorer)) for rows in self.rounds]
        return [MeasureRounds(rounds, self._way_out)]

    def _way_out(self, name: str) -> str:
        """The flags that keep what the run `name` learned."""
        if self.training is None or self.sharded:
            return ""
        replay = self.training.replay
        if replay is None or replay.data is None or replay.data.run != name:
            return f". To keep it, train with some of its rows: --replay 0.3 --replay-data run:{name}"
        return f". A larger --replay than {replay.share:g} keeps more of it"


@dataclass
class MeasureRounds(Hook):
    """`rounds` are the earlier runs with how they are measured; `records` are all measurements so far."""

    rounds: Sequence[tuple[EarlierRows, Validation]]
    way_out: Callable[[str], str]
    """By the name of a run, how what it learned is kept: the end of a warning."""
    records: list[EarlierRecord] = field(default_factory=list)

    def before_first_step(self, trainer: Trainer) -> None:
        self._measure(trainer, 0)

    def after_training(self, trainer: Trainer) -> None:
        self._measure(trainer, trainer.state.step)
        for one in self.outcomes():
            if _is_worse(one):
                trainer.emit(WarningMessage(f"an earlier round got worse: {one.describe()}{self.way_out(one.name)}"))

    def take_up(self, history: History) -> None:
        self.records = list(history.earlier)

    def recorded(self, results: Results) -> Results:
        return results.model_copy(update={"earlier_rounds": self.outcomes()})

    def outcomes(self) -> tuple[EarlierRound, ...]:
        """The scores before and after training of each earlier round that was measured both times."""
        names = dict.fromkeys(record.run for record in self.records)
        pairs = [[one for one in self.records if one.run == name] for name in names]
        return tuple(
            EarlierRound(name=last.run, rows=last.rows, answers=last.answers, before=first.scores, after=last.scores)
            for first, *_, last in (each for each in pairs if len(each) > 1)
        )

    def _measure(self, trainer: Trainer, step: int) -> None:
        for rows, validation in self.rounds:
            *others, loss = validation.validate(trainer, step)
            if not isinstance(loss, LossRecord) or not math.isfinite(loss.loss):
                continue
            others = [one for one in others if isinstance(one, ScoreRecord)]
            scores = {"loss": loss.loss, **{one.metric: one.value for one in others}}
            answers = max((one.n for one in others if one.metric in get_args(TextMetric)), default=0)
            self.records.append(EarlierRecord(step, rows.name, loss.sequences, answers, scores))
            trainer.emit(self.records[-1])


def _is_worse(earlier: EarlierRound) -> bool:
    before, after = dict(earlier.before), dict(earlier.after)
    if after.pop("loss") > before.pop("loss") * (1 + WORSE):
        return True
    up = [name for name in before.keys() & after.keys() & METRICS.keys() if METRICS[name].more_is_better]
    return any(after[name] < before[name] - WORSE * max(1.0, abs(before[name])) for name in up)
