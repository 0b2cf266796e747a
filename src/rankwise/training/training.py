"""What one training works with, and what it may do besides learning from its rows.

    settle      settings -> Settled                                                       (settling.py)
    run         load, encode, extras.rows, extras.prepare, attach, extras.attached        (run.py)
    record      the folder says "running", extras.hooks, train, save                      (recording.py)

An extra is made of the settings that ask for it, and its module is imported only then (extras/). It sees the `Training`
and may change its rows, its learning rate and what happens between its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import Adapting
from rankwise.config.base import JsonObject
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.evaluation.intervals import measured_share
from rankwise.methods.method import Method, Setup
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.planning.forecast import Disk
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import RowEncoding
from rankwise.runs.data_report import about, lines_of
from rankwise.runs.directory import ClaimedRun
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import DataFacts, Manifest, Results, peak_rss
from rankwise.runs.measured import PairResults
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import LossRecord, ScoreRecord, StepRecord, WarningCollector
from rankwise.runs.resumable import Resumable
from rankwise.training.losses import Backend
from rankwise.training.preflight import Foresight
from rankwise.training.step import Anchoring
from rankwise.training.trainer import Hook
from rankwise.training.validation import EarlyStopping, Scorer, Validation
from rankwise.training.validation_classes import baselines, never_predicted, still_falling
from rankwise.training.workload import Presentation, Workload
from rankwise.training.world import ONE_PROCESS, World, divided_over


@dataclass(frozen=True)
class Session:
    """Where a training runs: the folder that it writes, who hears of it, and the processes that train together."""

    run: ClaimedRun
    callback: WarningCollector
    world: World = ONE_PROCESS


@dataclass
class Training:
    """`config` names the steps and the learning rate. `trainable` and `work` exist once the adapter is attached;
    `work` is made before a checkpoint is restored."""

    session: Session
    model: LoadedModel
    base: LoadedModel
    """The model with its own template."""
    objective: Objective
    method: Method
    adapter: Adapting
    config: TrainingConfig
    validation: ValidationConfig
    auto_rate: float
    """The learning rate that `auto` stands for at width 576."""
    presentation: Presentation
    earliest: int
    """The first step whose result may be the best one."""
    prepared: Prepared
    scorer: Scorer
    setup: Setup
    stored: JsonObject
    """All settings, as the run's config.json has them."""
    lineage: tuple[Round, ...] = ()
    """The rounds that it began with."""
    resumable: Resumable | None = None
    begun: Manifest | None = None
    """The manifest of a run that is resumed, or that begins again because it diverged."""
    forecast: Foresight | None = None
    anchor: Anchoring | None = None
    """What holds it to its base."""
    trainable: Trainable = field(init=False)
    work: Workload = field(init=False)

    @property
    def result(self) -> Path:
        """The folder of what is learned."""
        return self.session.run.folder / self.adapter.artifact

    @property
    def rate(self) -> float:
        return float(self.config.learning_rate)

    @property
    def steps(self) -> int:
        assert self.config.steps is not None, "the settings are resolved"
        return self.config.steps

    @property
    def rows_per_step(self) -> int:
        return self.config.rows_per_step(self.prepared.rows_in_pass)

    @property
    def trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trainable.parameters())

    @property
    def tokens_trained(self) -> int:
        """In all steps together."""
        return self.steps * self.rows_per_step * self.prepared.tokens_in_pass // self.prepared.rows_in_pass

    @property
    def validation_interval(self) -> int:
        """Steps from one validation to the next."""
        read, written = self.prepared.measured_rows.tokens, self.scorer.tokens_written
        return self.validation.interval(self.steps, self.tokens_trained, read, written)

    @property
    def early_stopping(self) -> EarlyStopping:
        return EarlyStopping.of(self.validation, self.trainable, self.earliest)

    def validated(self, backend: Backend, prepared: Prepared, scorer: Scorer) -> Validation:
        """The validation of this training over these rows."""
        rows, most, world = prepared.measured_rows, self.config.max_batch_tokens, self.session.world
        return Validation(
            config=self.validation,
            interval=self.validation_interval,
            early_stopping=self.early_stopping,
            batches=divided_over(world, list(rows), partial(backend.layout, max_tokens=most)),
            rows=len(rows),
            scorer=scorer.over(world, backend, most),
            run=self.session.run,
            backend=backend,
            unit=prepared.data_report.learned.loss_unit,
            world=world,
        )


class Extra:
    """Something that a training does besides learning from its rows; by default nothing. Extras are called in the
    order of their table."""

    first = False
    """Whether its hooks come before the validation, because they may change the result."""
    about = ""
    """A line about it for the beginning of a run."""

    def rows(self, prepared: Prepared, model: LoadedModel, encoding: RowEncoding, session: Session) -> Prepared:
        """The rows to train on. `model` is the base, with the template that the rows are written with."""
        return prepared

    def prepare(self, training: Training) -> None:
        """Before an adapter is attached."""

    def attached(self, training: Training) -> None:
        """The adapter is attached and has learned nothing."""

    def hooks(self, training: Training, backend: Backend, validation: Validation) -> Sequence[Hook]:
        return ()

    def facts(self) -> dict[str, Any]:
        """Fields of the run's manifest."""
        return {}

    def follow(self, training: Training, log: MetricsLog, *, went_back: bool) -> None:
        """The run's folder says that it is running, and `log` is about to be written."""

    def end(self, seconds: float | None = None) -> None:
        """The run has ended; `seconds` limits how long this may take."""


def bytes_written(training: Training, state: int) -> int:
    """At most, without logs and reports; `state` is the size of a checkpoint."""
    return Disk.of(training.trained_parameters, state, training.config, training.validation, training.steps).total


def described(training: Training, about_extras: Sequence[str]) -> str:
    report, facts, trainable = training.prepared.data_report, training.model.facts, training.trainable
    data, interval = data_facts(training.prepared), training.validation_interval
    most = "up to " if training.validation.patience else ""
    unit, amount, processing = "images", "", training.model.processing
    if processing is None:
        learned = training.objective.words.learned_share.format(data.loss_tokens / data.tokens)
        unit, amount = "sequences", f", {data.tokens:,} tokens, {learned}"
    often = f", measured every {interval} steps" if interval < training.steps else ""
    lines = [
        f"{facts.name} ({facts.source}; {facts.dtype} on {facts.device}: {training.model.precision.why})",
        f"{data.rows:,} rows in {data.format} format: {data.training_sequences:,} training {unit}{amount}"
        + (f"; {data.validation_sequences:,} validation {unit}{often}" if data.validation_sequences else ""),
        processing.describe() if processing is not None else "",
        f"{training.trained_parameters:,} trainable parameters in {len(trainable.names)} {trainable.unit}; "
        f"{most}{training.steps} steps at learning rate {training.rate:.2g}",
        *about_extras,
        f"replay: {report.replay.describe()}" if report.replay is not None else "",
        *map(about, report.files),
        *(f"{label}: {text}" for label, text, count in lines_of(report) if count),
    ]
    return "\n".join(filter(None, lines))


def results_of(training: Training, records: Sequence[StepRecord], validation: Validation, seconds: float) -> Results:
    """`loss` is the mean over the last tenth of the steps."""
    last = records[-max(1, len(records) // 10) :]
    images = sum(record.images for record in records)
    together = sum(parameter.numel() for parameter in training.model.module.parameters())
    ends = 0, validation.result_step
    before, after = map(validation.loss_after, ends)
    after = validation.calibrated or after
    accuracies = [validation.score_after(step, "accuracy") for step in ends]
    return Results(
        steps=len(records),
        loss=sum(r.loss * r.loss_tokens for r in last) / sum(r.loss_tokens for r in last),
        validation_loss_before=before.loss if before else None,
        validation_loss_after=after.loss if after else None,
        validation_loss_tokens=after.loss_tokens if after else None,
        train_seconds=seconds,
        tokens_per_second=sum(record.tokens for record in records) / seconds,
        images_per_second=images / seconds if images else None,
        peak_rss_bytes=peak_rss(),
        trainable_parameters=training.trained_parameters,
        total_parameters=together - training.trainable.extra_parameters,
        adapter_bytes=0,  # nothing is written yet
        kept_step=validation.result_step,
        kept_why=validation.result_why,
        ended_early=validation.stopped_early,
        validation_accuracy_before=accuracies[0].value if accuracies[0] else None,
        validation_accuracy_after=accuracies[1].value if accuracies[1] else None,
        temperature=validation.temperature,
        baselines=_baselines(training, accuracies[0]) if training.session.world.is_first else None,
        preference=_pair_results(validation.score_after, *ends),
    )


def _pair_results(score_after: Callable[[int, str], ScoreRecord | None], first: int, last: int) -> PairResults | None:
    """The scores of the validations after the steps `first` and `last`; None where no pairs were validated."""
    scores = {
        (step, metric): score_after(step, metric)
        for step in (first, last)
        for metric in ("preference_accuracy", "margin")
    }
    values = {key: record.value for key, record in scores.items() if record is not None}
    if len(values) < len(scores) or (counted := scores[last, "margin"]) is None:
        return None
    moved = score_after(last, "kl_from_base")
    accuracy = measured_share(values[last, "preference_accuracy"] * counted.n, counted.n)
    assert accuracy is not None, "there are pairs"
    return PairResults(
        pairs=counted.n, accuracy_before=values[first, "preference_accuracy"], accuracy_after=accuracy,
        margin_before=values[first, "margin"], margin_after=values[last, "margin"],
        kl_from_base=None if moved is None else moved.value,
    )  # fmt: skip


def _baselines(training: Training, before: ScoreRecord | None) -> dict[str, float] | None:
    found = baselines(training.scorer, training.prepared)
    if found is None or before is None or training.lineage or training.model.own_head:
        return found
    fitted = training.objective.score.baseline
    return found if fitted is None else {fitted: before.value, **found}


def class_warnings(training: Training, validation: Validation, results: Results, rate: float) -> list[str]:
    """Warnings about a classifier, such as a class that it never predicts; `rate` is its learning rate."""
    losses = [one for one in validation.records if isinstance(one, LossRecord)]
    epochs = training.steps * training.rows_per_step / training.prepared.rows_in_pass
    found = never_predicted(training.scorer, results.kept_step or 0, rate)
    found += still_falling(losses, training.steps, epochs)
    own, words = results.validation_accuracy_after, (results.baselines or {}).get("words", 0.0)
    if own is not None and words > own:
        found.append(
            f"on the {len(training.prepared.validation)} validation rows, logistic regression on words (TF-IDF) is "
            f"right more often than this model: {words:.1%} against {own:.1%}"
        )
    return found


def data_facts(prepared: Prepared) -> DataFacts:
    """What the manifest keeps beside the data report."""
    data_report, trained = prepared.data_report, prepared.trained_rows
    hashes = [file.sha256 for file in data_report.files]
    return DataFacts(
        path=", ".join(file.name for file in data_report.files),
        sha256=hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest(),
        format=data_report.format,
        rows=data_report.rows,
        training_sequences=len(trained),
        validation_sequences=len(prepared.validation),
        rows_too_long=data_report.skipped_why.get("too long", 0),
        tokens=trained.tokens,
        loss_tokens=trained.loss_count,
    )
