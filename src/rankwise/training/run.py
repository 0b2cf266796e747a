"""One training run: what was decided before its first step, its trainer with all hooks, and what it came to.

What the run's folder says of it, from its beginning to its end, is in commands/train.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from rankwise.base.loaded import LoadedModel
from rankwise.base.sharding import save_whole
from rankwise.base.split import is_split
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.evaluation.text import Text
from rankwise.methods.method import Method
from rankwise.methods.model_card import UNKNOWN, CardFacts
from rankwise.methods.saving import save_result, training_facts
from rankwise.methods.trainable import Trainable
from rankwise.planning.forecast import SLOW_DISK, Disk
from rankwise.planning.tasks import EXACT
from rankwise.rows.images.processor import augmentation
from rankwise.rows.preparation import Prepared
from rankwise.runs.data_report import about, lines_of
from rankwise.runs.directory import REFERENCE, RunDirectory
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import DataFacts, Manifest, Results, Tuning, peak_rss
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import LossRecord, ScoreRecord, StepRecord, WarningCollector
from rankwise.runs.resumable import Resumable
from rankwise.system.memory import available_memory
from rankwise.training.anchor import Anchor, BaseOnText
from rankwise.training.backend import Eager, Fused
from rankwise.training.budgets import AccuracyBudget, AccuracyTask, ForgettingBudget, ordinary_text
from rankwise.training.checkpoints import size_of
from rankwise.training.earlier_rounds import EarlierRounds, EarlierRows
from rankwise.training.hooks import (
    CheckpointPace,
    EndByRequest,
    FollowCheckpoints,
    LogMetrics,
    LossWatch,
    ReportHook,
    SaveCheckpoints,
)
from rankwise.training.losses import Backend
from rankwise.training.pairs import PairBackend, PairReference, pair_results, reference_of, reference_of_run
from rankwise.training.state import TrainState
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.validation import EarlyStopping, Scorer, Validation, early_stopping_of, refuse_no_choice
from rankwise.training.validation_classes import baselines, never_predicted, still_falling
from rankwise.training.workload import Workload, batches_of, prefix_room
from rankwise.training.world import ONE_PROCESS, World, divided_over


@dataclass(frozen=True)
class TrainingRun:
    """`config` are the experiment's training settings with the steps and the learning rate named; `work` is made before
    a checkpoint is restored."""

    experiment: Experiment
    config: TrainingConfig
    run: RunDirectory
    model: LoadedModel
    method: Method
    trainable: Trainable
    prepared: Prepared
    scorer: Scorer
    work: Workload
    callback: WarningCollector
    lineage: tuple[Round, ...] = ()
    """The rounds that it began with."""
    anchor_text: Text | None = None
    """The text on which it is held to its base."""
    accuracy_tasks: tuple[AccuracyTask, ...] = ()
    """The tasks on which a budget of accuracy is measured."""
    tuning: Tuning | None = None
    """How its learning rate was chosen, where trials were asked for."""
    world: World = ONE_PROCESS
    earlier_rows: Sequence[EarlierRows] = ()
    """The validation rows of the runs that it goes on from."""

    @property
    def result(self) -> Path:
        """The folder of what is learned."""
        return self.run.folder / self.experiment.adapter.artifact

    @property
    def rate(self) -> float:
        return float(self.config.learning_rate)

    @property
    def steps(self) -> int:
        assert self.config.steps is not None, "the settings are resolved"
        return self.config.steps

    @property
    def trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trainable.parameters())

    @property
    def tokens_trained(self) -> int:
        """In all steps together."""
        rows, tokens = self.prepared.rows_in_pass, self.prepared.tokens_in_pass
        return self.steps * self.config.rows_per_step(rows) * tokens // rows

    @property
    def validation_interval(self) -> int:
        """Steps from one validation to the next."""
        read, written = self.prepared.measured_rows.tokens, self.scorer.tokens_written
        return self.experiment.validation.interval(self.steps, self.tokens_trained, read, written)

    def check(self) -> None:
        """ConfigError where the best of several validations is wanted and there would be only one."""
        config = self.experiment.validation
        refuse_no_choice(config, self.validation_interval, self._early_stopping, self.steps)

    @property
    def _early_stopping(self) -> EarlyStopping:
        earliest = self.experiment.objective_settings.earliest
        return early_stopping_of(self.experiment.validation, self.trainable, earliest)

    def bytes_written(self, state: TrainState) -> int:
        """At most, without logs and reports."""
        validation = self.experiment.validation
        return Disk.of(self.trained_parameters, size_of(state), self.config, validation, self.steps).total

    def describe(self) -> str:
        data, facts, trainable = data_facts(self.prepared), self.model.facts, self.trainable
        interval, most = self.validation_interval, "up to " if self.experiment.validation.patience else ""
        unit, amount = "images", ""
        if (processing := self.model.processing) is None:
            learned = self.work.objective.learned_share(data.loss_tokens, data.tokens)
            unit, amount = "sequences", f", {data.tokens:,} tokens, {learned}"
        often = f", measured every {interval} steps" if interval < self.steps else ""
        return (
            f"{facts.name} ({facts.source}; {facts.dtype} on {facts.device}: {self.model.precision.why})\n"
            f"{data.rows:,} rows in {data.format} format: {data.training_sequences:,} training {unit}{amount}"
            + (f"; {data.validation_sequences:,} validation {unit}{often}" if data.validation_sequences else "")
            + (f"\n{processing.describe()}" if processing is not None else "")
            + f"\n{self.trained_parameters:,} trainable parameters in {len(trainable.names)} {trainable.unit}; "
            f"{most}{self.steps} steps at learning rate {self.rate:.2g}"
            + (f"\nheld to its base on {self.anchor_text.about}" if self.anchor_text is not None else "")
            + (f"\nreplay: {replay.describe()}" if (replay := self.prepared.data_report.replay) is not None else "")
            + "".join(f"\n{about(file)}" for file in self.prepared.data_report.files)
            + "".join(f"\n{label}: {text}" for label, text, count in lines_of(self.prepared.data_report) if count)
        )

    def begin(self) -> None:
        """Write what a run holds from its beginning on."""
        self.run.begin(self.experiment)
        self.run.write_data_report(self.prepared.data_report)
        if (values := self.prepared.sequences.references) is not None:
            self.run.write_reference(PairReference(values).facts)

    def with_reference(self, backend: Backend, resumable: Resumable | None) -> TrainingRun:
        """Add the reference log-probabilities to the run's pairs, where its objective compares them with any."""
        if not isinstance(backend, PairBackend) or not backend.objective.needs_reference:
            return self
        reference = (
            reference_of_run((self.run.reference, resumable.checkpoint.file(REFERENCE)), len(self.prepared.sequences))
            if resumable is not None
            else self._reference(backend)
        )
        return replace(self, prepared=self.prepared.with_references(reference.values))

    def _reference(self, backend: PairBackend) -> PairReference:
        most = self.config.max_batch_tokens
        return reference_of(backend, self.prepared, self.lineage, most, self.callback, self.world)

    def validation(self, backend: Backend) -> Validation:
        rows, config = self.prepared.measured_rows, self.experiment.validation
        most = self.config.max_batch_tokens
        return Validation(
            config=config,
            interval=self.validation_interval,
            early_stopping=self._early_stopping,
            batches=divided_over(self.world, list(rows), partial(backend.layout, max_tokens=most)),
            rows=len(rows),
            scorer=self.scorer.over(self.world, backend, most),
            run=self.run,
            backend=backend,
            unit=self.prepared.data_report.learned.loss_unit,
            world=self.world,
        )

    def _earlier(self, backend: Backend) -> EarlierRounds:
        """What becomes of the runs that it goes on from."""
        rounds = [
            (rows, replace(self, prepared=rows.prepared, scorer=rows.scorer).validation(rows.backend(backend)))
            for rows in self.earlier_rows
        ]
        return EarlierRounds(rounds, self.experiment)

    def _anchor(self, backend: Backend) -> Anchor | None:
        """None where the run is not held to its base."""
        if (config := self.config.anchor) is None or self.anchor_text is None:
            return None
        assert isinstance(backend, Eager | Fused), "other objectives refuse an anchor"
        base = BaseOnText(self.anchor_text, self.trainable, backend, prefix_room(available_memory()), self.world)
        return Anchor(base, config.weight, self.config.seed, self.config.max_batch_tokens)

    def _budgets(self, anchor: Anchor | None, validation: Validation) -> list[Hook]:
        """At most one."""
        config = self.config.anchor
        if config is None or anchor is None:
            return []
        if config.most_points is not None:
            return [AccuracyBudget(config.most_points, self.accuracy_tasks, self.model, validation, self.world)]
        if (most := config.most_nats) is None:
            return []
        interval = ForgettingBudget.interval_of(self.steps)
        ordinary = replace(anchor.base, text=ordinary_text(self.model))
        return [ForgettingBudget(most, ordinary, anchor, validation, interval)]

    def _watch(self) -> LossWatch:
        """It recommends the rate of `auto`, or a tenth of the run's where that is lower."""
        auto = self.config.model_copy(update={"learning_rate": "auto"})
        rate = min(self.rate / 10, auto.highest_rate(self.model.width, self.experiment.auto_rate))
        rows = self.config.rows_per_step(self.prepared.rows_in_pass)
        objective = self.work.objective
        return LossWatch(objective.far_above, rows, rate, objective.choices(self.model))

    def trainer(self, backend: Backend, validation: Validation, log: MetricsLog) -> Trainer:
        """Before its first step, with everything that happens between steps. A budget comes before what measures the
        result. Of several processes, the first writes and reports."""
        anchor, watch = self._anchor(backend), self._watch()
        config, took = self.config, 3 * EXACT * self.trained_parameters / SLOW_DISK
        pace = CheckpointPace(config.checkpoint_interval(self.steps), config.checkpoint_seconds, took)
        backs_off = config.on_divergence == "back-off"
        checkpoints = SaveCheckpoints(self.run, pace, config.keep_checkpoints, log, watch, backs_off)
        ends = [] if self.world.is_several else [EndByRequest(self.run, validation)]
        measures = [watch, *self._budgets(anchor, validation), validation, self._earlier(backend)]
        hooks: list[Hook] = [LogMetrics(log), *ends, *measures, checkpoints, ReportHook(self.callback)]
        vary = augmentation(self.experiment.images, config.seed)
        beside = 0 if anchor is None else anchor.base.text.length
        batches = batches_of(self.prepared, config, backend.layout, vary, self.world, beside)
        follow = FollowCheckpoints(watch, gives=any(map(is_split, self.trainable.parameters())))
        own = hooks if self.world.is_first else [*measures, follow]
        return Trainer(self.trainable, batches, config, backend, own, anchor, self.world)

    def give_parts(self) -> None:
        """In a process that does not write: its part of what is written, where what learned is split."""
        if any(map(is_split, self.trainable.parameters())):
            save_whole(self.model.module, None)

    def save(self, results: Results, manifest: Manifest) -> Results:
        """Write what was learned; `manifest` is that of the run so far."""
        folder = self.result
        self.run.check_lock()
        facts = CardFacts(
            self.experiment, self.model.facts, UNKNOWN, self.prepared.data_report, results, self.rate,
            lineage=self.lineage, forecast=manifest.forecast,
        )  # fmt: skip
        training = training_facts(self.experiment.model_dump(mode="json"), manifest)
        save_result(self.method, self.trainable, self.model, folder, facts, training=training, callback=self.callback)
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return results.model_copy(update={"adapter_bytes": written})

    def _baselines(self, before: ScoreRecord | None) -> dict[str, float] | None:
        found = baselines(self.scorer, self.prepared)
        if found is None or before is None or self.lineage or self.model.own_head:
            return found
        return {**self.work.objective.fitted_baseline(before.value), **found}

    def class_warnings(self, validation: Validation, results: Results, rate: float) -> list[str]:
        """Warnings about a classifier, such as a class that it never predicts; `rate` is its learning rate."""
        losses = [one for one in validation.records if isinstance(one, LossRecord)]
        rows = self.prepared.rows_in_pass
        epochs = self.steps * self.config.rows_per_step(rows) / rows
        found = never_predicted(self.scorer, results.kept_step or 0, rate)
        found += still_falling(losses, self.steps, epochs, self.work.objective.falling)
        own, words = results.validation_accuracy_after, (results.baselines or {}).get("words", 0.0)
        if own is not None and words > own:
            found.append(
                f"on the {len(self.prepared.validation)} validation rows, logistic regression on words (TF-IDF) is "
                f"right more often than this model: {words:.1%} against {own:.1%}"
            )
        return found

    def results(self, records: Sequence[StepRecord], validation: Validation, seconds: float) -> Results:
        """`loss` is the mean over the last tenth of the steps."""
        last = records[-max(1, len(records) // 10) :]
        images = sum(record.images for record in records)
        together = sum(parameter.numel() for parameter in self.model.module.parameters())
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
            trainable_parameters=self.trained_parameters,
            total_parameters=together - self.trainable.extra_parameters,
            adapter_bytes=0,  # nothing is written yet
            kept_step=validation.result_step,
            kept_why=validation.result_why,
            ended_early=validation.stopped_early,
            validation_accuracy_before=accuracies[0].value if accuracies[0] else None,
            validation_accuracy_after=accuracies[1].value if accuracies[1] else None,
            temperature=validation.temperature,
            baselines=self._baselines(accuracies[0]) if self.world.is_first else None,
            preference=pair_results(validation.score_after, *ends),
        )


def data_facts(prepared: Prepared) -> DataFacts:
    """What the manifest keeps beside the data report."""
    data_report = prepared.data_report
    trained = prepared.trained_rows
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
