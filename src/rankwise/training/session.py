"""One training from its state before the first step to its results; what the folder says of it is in train.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rankwise.config.experiment import Experiment
from rankwise.data.batches import Arrange, Batches
from rankwise.data.preparation import Prepared
from rankwise.data.preparing import facts_of, told
from rankwise.errors import TrainingError, some
from rankwise.methods.base import BaseFacts
from rankwise.methods.method import Method, Record
from rankwise.methods.model_card import CardFacts, card
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import Form, Results, peak_rss
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import (
    Callback,
    Event,
    ProgressUpdate,
    StatusMessage,
    StepRecord,
    WarningCollector,
    WarningMessage,
)
from rankwise.training.auto_batch import Halving
from rankwise.training.backend import Forms
from rankwise.training.checkpoints import save, size_of
from rankwise.training.finite import averages_of, check_finite
from rankwise.training.loop import train as train_loop
from rankwise.training.losses import Loss
from rankwise.training.measuring import Measuring
from rankwise.training.resume import Past
from rankwise.training.schedules import rate_factor
from rankwise.training.state import TrainState, adamw
from rankwise.training.validation import Tracked, Tracking, judge_of, refuse_no_choice
from rankwise.training.validation_prompts import Asking


@dataclass(frozen=True)
class Session:
    experiment: Experiment
    run: RunDirectory
    model: LoadedModel
    method: Method
    trainable: Trainable
    prepared: Prepared
    callback: WarningCollector
    lowest: int
    """The block below which nothing learns (forms.py)."""
    asking: Asking

    @property
    def rate(self) -> float:
        return self.experiment.training.highest_rate(self.model.width, self.experiment.adapter.auto_rate)

    @property
    def steps(self) -> int:
        return self.experiment.training.total_steps(len(self.prepared.trained_rows))

    @property
    def trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trainable.parameters())

    def bytes_written(self, state: TrainState) -> int:
        """At most: what is learned, three snapshots of the best, two checkpoints while one takes the other's place."""
        saves = self.experiment.training.checkpoint_interval(self.steps) < self.steps
        keeps = self.experiment.evaluation.keep == "best"
        return 4 * self.trained_parameters * (1 + 3 * keeps) + 2 * size_of(state) * saves

    @property
    def tokens_trained(self) -> int:
        """In all steps together."""
        rows = self.prepared.trained_rows
        return self.steps * self.experiment.training.rows_per_step(len(rows)) * rows.tokens // len(rows)

    @property
    def interval(self) -> int:
        """Steps from one evaluation to the next."""
        read, written = self.prepared.measured_rows.tokens, self.asking.longest
        return self.experiment.evaluation.interval(self.steps, self.tokens_trained, read, written)

    def describe(self) -> str:
        data, facts = facts_of(self.prepared), self.model.facts
        share = data.loss_tokens / data.tokens
        return (
            f"{facts.name} ({facts.source}; {facts.dtype} on {facts.device}: {self.model.precision.why})\n"
            f"{data.rows:,} rows in {data.format} form, {data.trained_documents:,} documents to train on, "
            f"{data.tokens:,} tokens, {share:.0%} of them learned"
            + (f"; {data.measured_documents:,} to measure with{self._often}" if data.measured_documents else "")
            + f"\n{self.trained_parameters:,} trainable parameters in {len(self.trainable.names)} "
            f"{self.trainable.unit}; {self.steps} steps at learning rate {self.rate:.2g}"
            + "".join(f"\n{line}" for line in told(self.prepared.data_report))
        )

    @property
    def _often(self) -> str:
        return f" every {self.interval} steps" if self.interval < self.steps else ""

    def work(self, state: TrainState, past: Past) -> Results:
        with MetricsLog(self.run.metrics) as metrics_log:
            seen, tracked, seconds = self._train(metrics_log, state, past)
        data_report, results = self.prepared.data_report, self._results(seen, tracked, seconds)

        def card_of(base: BaseFacts, ranks: Sequence[int]) -> str:
            return card(CardFacts(self.experiment, base, base.licence, data_report, results, self.rate, ranks))

        folder, revision = self.run.result, self.experiment.model.revision
        record = Record(data_report.model_dump(mode="json"), revision, card_of, self.callback)
        self.method.save(self.trainable, self.model, folder, record)
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return results.model_copy(update={"adapter_bytes": written})

    def _train(self, metrics_log: MetricsLog, state: TrainState, past: Past) -> tuple[list[StepRecord], Tracked, float]:
        seen = list(past.seen)

        def hear(event: Event) -> None:
            if not isinstance(event, StatusMessage | WarningMessage | ProgressUpdate):
                metrics_log.append(event.as_row())
            if isinstance(event, StepRecord):
                seen.append(event)
            self.callback(event)

        with self.forms.computing(past.manifest.form, self.experiment.data.packing) as computing:
            return seen, *self._learn(state, past, hear, *computing, metrics_log)

    def _learn(
        self, state: TrainState, past: Past, hear: Callback, loss_of: Loss, arrange: Arrange, metrics_log: MetricsLog
    ) -> tuple[Tracked, float]:
        """From the first measurement to the last."""
        spec, rows = self.experiment.training, self.prepared.trained_rows
        batches = Batches(rows, spec.rows_per_step(len(rows)), spec.max_batch_tokens, spec.seed, arrange)
        portions = Halving(batches, hear) if spec.auto_batch else batches
        tracking = self._tracking(state, past, hear, loss_of, arrange)
        if state.step == 0:
            if self.trainable.initial_ranks is not None:
                hear(self.trainable.initial_ranks)
            tracking.begin()
            torch.manual_seed(spec.seed)

        def after_step(state: TrainState) -> None:
            if state.finished or tracking.is_due(state) or self._saves(state):
                parameters = self.trainable.named_parameters()
                check_finite(parameters | averages_of(parameters, state), state)
            tracking.after_step(state)
            self._save(state, metrics_log)

        self.trainable.train()
        began, aside = time.perf_counter(), tracking.measuring.seconds
        try:
            train_loop(state, portions, loss_of=loss_of, callback=hear, after_step=after_step)
        finally:
            self.trainable.train(False)
        seconds = past.seconds + time.perf_counter() - began - (tracking.measuring.seconds - aside)
        self._check_that_all_learned(state)
        tracked = tracking.choose(state)
        self.trainable.finish()
        self._check_that_it_changes_something()
        check_finite(self.trainable.named_parameters(), state)
        tracking.close(tracked)
        return tracked, seconds

    def _tracking(self, state: TrainState, past: Past, hear: Callback, loss_of: Loss, arrange: Arrange) -> Tracking:
        spec, rows = self.experiment.evaluation, self.prepared.measured_rows
        batches = arrange(list(rows), self.experiment.training.max_batch_tokens)
        measuring = Measuring(self.model, self.trainable, loss_of, batches, len(rows), self.asking, spec.metrics)
        judge = judge_of(spec, state.trainable)
        return Tracking(spec, self.interval, judge, measuring, self.run, hear, past.evaluations)

    def _saves(self, state: TrainState) -> bool:
        return not state.finished and state.step % self.experiment.training.checkpoint_interval(state.steps) == 0

    def _save(self, state: TrainState, metrics_log: MetricsLog) -> None:
        """The one before it goes when the new one is there."""
        if self._saves(state):
            metrics_log.sync()
            save(state, self.run.checkpoint(state.step))
            self.run.forget_checkpoints(but=state.step)

    @property
    def forms(self) -> Forms:
        spec, longest = self.experiment.training, self.prepared.longest
        largest = max(longest, min(spec.max_batch_tokens, spec.batch_size * longest))
        twice = spec.activation_checkpointing
        return Forms(self.model, self.trainable, longest, largest, self.lowest, twice, self.callback)

    def form(self) -> Form:
        """In which form a new run is computed. It stays so if it is resumed."""
        return "plain" if self.experiment.training.plain else self.forms.chosen(self.tokens_trained)

    def state(self) -> TrainState:
        """Before the first step."""
        spec, tracking = self.experiment.training, self.experiment.evaluation
        refuse_no_choice(tracking, self.interval, judge_of(tracking, self.trainable), self.steps)
        return TrainState(
            trainable=self.trainable,
            optimizer=adamw(self.trainable, spec),
            rate=lambda step: self.rate * rate_factor(spec, step, self.steps),
            steps=self.steps,
            clip=spec.clip,
            device=self.model.precision.device,
        )

    def _check_that_all_learned(self, state: TrainState) -> None:
        idle = self.trainable.without_gradient(state.optimizer)
        parts, kind = len(self.trainable.names), self.trainable.unit
        if len(idle) >= parts:
            raise TrainingError(f"none of the {parts} {kind} got a gradient, so nothing was learned.")
        if idle:
            self.callback(WarningMessage(f"{len(idle)} of {parts} {kind} never got a gradient: {some(idle, 3)}"))

    def _check_that_it_changes_something(self) -> None:
        if (warning := self.trainable.check_change(self.rate)) is not None:
            self.callback(WarningMessage(warning))

    def _results(self, seen: list[StepRecord], tracked: Tracked, seconds: float) -> Results:
        """`loss` is the mean over the last tenth of the steps."""
        last = seen[-max(1, len(seen) // 10) :]
        together = sum(parameter.numel() for parameter in self.model.module.parameters())
        return Results(
            steps=len(seen),
            loss=sum(r.loss * r.loss_tokens for r in last) / sum(r.loss_tokens for r in last),
            held_out_loss_before=tracked.before.loss if tracked.before else None,
            held_out_loss_after=tracked.after.loss if tracked.after else None,
            held_out_loss_tokens=tracked.after.loss_tokens if tracked.after else None,
            train_seconds=seconds,
            tokens_per_second=sum(record.tokens for record in seen) / seconds,
            peak_rss_bytes=peak_rss(),
            trainable_parameters=self.trained_parameters,
            total_parameters=together - self.trainable.extra_parameters,
            adapter_bytes=0,  # nothing is written yet
            kept_step=tracked.kept_step,
            kept_why=tracked.kept_why,
            ended_early=tracked.ended_early,
        )
