"""Wire data, model, adapter and loop together: from an Experiment to a finished run.

Nothing is written before everything that can be wrong beforehand has been checked: settings, rows, model, targets.
The adapter is written whole, then the manifest says finished. A run that fails or is stopped keeps its metrics and
says so; it never holds an adapter.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from rankwise.adapters.adapter_set import AdapterSet, inject
from rankwise.adapters.peft_format import WEIGHTS, write_peft
from rankwise.data.batches import Arrange, Batches, portion
from rankwise.data.packing import pack
from rankwise.data.preparation import Prepared
from rankwise.errors import Interrupted, RankwiseError, ResourceError, SpecError, TrainingError, is_out_of_memory, some
from rankwise.models.causal import SupervisedLogits, check_packs
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.run.directory import RunDirectory
from rankwise.run.journal import Journal
from rankwise.run.manifest import Manifest, Results, now, peak_rss
from rankwise.run.receipt import RECEIPT
from rankwise.run.records import Announce, Event, LossRecord, Said, StepRecord, silent
from rankwise.run.writing import need_space
from rankwise.spec.experiment import Experiment
from rankwise.training.loop import train as train_loop
from rankwise.training.losses import mean_loss
from rankwise.training.schedules import learning_rate, rate_factor
from rankwise.training.state import TrainState, adamw
from rankwise.verbs.preparing import Writing, facts_of, prepare, refuse_fatal, told


@dataclass(frozen=True)
class Trained:
    """A finished run, and the model with the adapter still in it."""

    run: RunDirectory
    manifest: Manifest
    model: LoadedModel
    adapters: AdapterSet

    def summary(self) -> dict[str, Any]:
        """What `rankwise train --json` prints."""
        results = self.manifest.results
        assert results is not None, "only a finished run is returned"
        return {"run": str(self.run.folder), "adapter": str(self.run.adapter), **results.model_dump()}


def train(
    experiment: Experiment, *, announce: Announce = silent, restart: bool = False, model: LoadedModel | None = None
) -> Trained:
    """Train an adapter; the result lies in `runs/NAME`. A `model` that is loaded already saves loading it again."""
    run = RunDirectory.named(experiment.run)
    with run.claimed(restart=restart):
        loaded = model if model is not None else load(experiment.model, announce)
        if loaded.spec != experiment.model:
            raise SpecError(
                [f'the model given is "{loaded.spec.name}", and the experiment asks for another: {experiment.model}.']
            )
        writing = Writing(loaded.tokenizer, loaded.template, loaded.source.name, loaded.context_length)
        prepared = prepare(experiment.data, writing, announce)
        refuse_fatal(prepared.receipt)
        loaded = replace(loaded, template=writing.by(experiment.data).template)
        adapters = inject(loaded.module, experiment.adapter, seed=experiment.training.seed)
        try:
            session = _Session(experiment, run, loaded, adapters, prepared, announce)
            return Trained(run, _recorded(run, session), loaded, adapters)
        except BaseException:
            adapters.eject()
            raise


@dataclass(frozen=True)
class _Session:
    experiment: Experiment
    run: RunDirectory
    model: LoadedModel
    adapters: AdapterSet
    prepared: Prepared
    announce: Announce

    @property
    def rate(self) -> float:
        return learning_rate(self.experiment.training, self.model.width)

    @property
    def steps(self) -> int:
        return self.experiment.training.total_steps(len(self.prepared.trained_rows))

    @property
    def trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.adapters.parameters())

    def describe(self) -> str:
        data, facts = facts_of(self.prepared), self.model.facts
        share = data.supervised_tokens / data.tokens
        return (
            f"{facts.name} ({facts.source}; {facts.dtype} on {facts.device}: {self.model.precision.why})\n"
            f"{data.rows:,} rows in {data.format} form, {data.trained_documents:,} documents to train on, "
            f"{data.tokens:,} tokens, {share:.0%} of them learned"
            + (f"; {data.measured_documents:,} documents to measure with" if data.measured_documents else "")
            + f"\n{self.trainable:,} trainable parameters on {len(self.adapters.layers)} layers; "
            f"{self.steps} steps at learning rate {self.rate:.2g}"
            + "".join(f"\n{line}" for line in told(self.prepared.receipt))
        )

    def work(self) -> Results:
        with Journal(self.run.metrics) as journal:
            seen, before, after, seconds = self._train(journal)
        revision = self.experiment.model.revision
        receipt = {RECEIPT: self.prepared.receipt.model_dump(mode="json")}
        write_peft(
            self.adapters, self.run.adapter, base_model=self.model.source.name, revision=revision, beside=receipt
        )
        return self._results(seen, before, after, seconds)

    def _train(self, journal: Journal) -> tuple[list[StepRecord], LossRecord | None, LossRecord | None, float]:
        seen: list[StepRecord] = []

        def hear(event: Event) -> None:
            if isinstance(event, StepRecord | LossRecord):
                journal.append(event.as_row())
            if isinstance(event, StepRecord):
                seen.append(event)
            self.announce(event)

        spec, rows = self.experiment.training, self.prepared.trained_rows
        forward = SupervisedLogits(self.model.module)
        batches = Batches(rows, spec.rows_per_step(len(rows)), spec.micro_batch_tokens, spec.seed, self._arrange())
        state = self._state()
        before = self._held_out(forward, 0, hear)
        torch.manual_seed(spec.seed)
        self.adapters.train()
        began = time.perf_counter()
        try:
            train_loop(state, batches, forward=forward, announce=hear)
        finally:
            self.adapters.train(False)
        seconds = time.perf_counter() - began
        self._check_that_all_learned(state)
        return seen, before, self._held_out(forward, self.steps, hear), seconds

    def _arrange(self) -> Arrange:
        """How the documents of a step become rows."""
        if not self.experiment.data.packing:
            return portion
        check_packs(self.model.module, self.model.vocabulary)
        return pack

    def _state(self) -> TrainState:
        spec, parameters = self.experiment.training, self.adapters.parameters()
        return TrainState(
            parameters=parameters,
            optimizer=adamw(parameters, spec),
            rate=lambda step: self.rate * rate_factor(spec, step, self.steps),
            steps=self.steps,
            clip=spec.clip,
            device=self.model.precision.device,
        )

    def _check_that_all_learned(self, state: TrainState) -> None:
        """The optimizer knows a parameter from its first gradient on."""
        parts = self.adapters.adapters().items()
        idle = [path for path, adapter in parts if adapter.B not in state.optimizer.state]
        if len(idle) == len(parts):
            raise TrainingError(f"none of the {len(idle)} adapted layers got a gradient, so nothing was learned.")
        if idle:
            self.announce(Said(f"{len(idle)} of {len(parts)} adapted layers never got a gradient: {some(idle, 3)}"))

    def _held_out(self, forward: SupervisedLogits, step: int, hear: Announce) -> LossRecord | None:
        rows = self.prepared.measured_rows
        if not rows:
            return None
        batches = portion(list(rows), self.experiment.training.micro_batch_tokens)
        loss, tokens = mean_loss(forward, batches, self.model.precision.device)
        record = LossRecord(step=step, loss=loss, supervised_tokens=tokens, documents=len(rows))
        hear(record)
        return record

    def _results(
        self, seen: list[StepRecord], before: LossRecord | None, after: LossRecord | None, seconds: float
    ) -> Results:
        """`loss` is the mean over the last tenth of the steps."""
        last = seen[-max(1, len(seen) // 10) :]
        adapted = sum(parameter.numel() for parameter in self.model.module.parameters())
        return Results(
            steps=len(seen),
            loss=sum(r.loss * r.supervised_tokens for r in last) / sum(r.supervised_tokens for r in last),
            held_out_loss_before=before.loss if before else None,
            held_out_loss_after=after.loss if after else None,
            held_out_supervised_tokens=after.supervised_tokens if after else None,
            train_seconds=seconds,
            tokens_per_second=sum(record.tokens for record in seen) / seconds,
            peak_rss_bytes=peak_rss(),
            trainable_parameters=self.trainable,
            total_parameters=adapted - self.trainable,
            adapter_bytes=(self.run.adapter / WEIGHTS).stat().st_size,
        )


def _recorded(run: RunDirectory, session: _Session) -> Manifest:
    """Begin the run and do the work; however it ends, the manifest says so."""
    need_space(run.folder, 4 * session.trainable)
    manifest = Manifest(
        status="running", base_model=session.model.facts, data=facts_of(session.prepared), learning_rate=session.rate
    )
    run.begin(session.experiment)
    run.write_receipt(session.prepared.receipt)
    run.write_manifest(manifest)
    session.announce(Said(session.describe()))
    try:
        results = session.work()
        finished = manifest.model_copy(update={"status": "finished", "ended": now(), "results": results})
        run.write_manifest(finished)
        return finished
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        ended = manifest.model_copy(
            update={"status": status, "ended": now(), "problem": str(error) or type(error).__name__}
        )
        with suppress(RankwiseError, OSError):  # a full disk may refuse this too; "running" without a lock says enough
            shutil.rmtree(run.adapter, ignore_errors=True)
            run.write_manifest(ended)
        raise _told(error, run) from None


def _told(error: BaseException, run: RunDirectory) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        message = f"stopped. {run.folder} keeps the metrics so far and holds no adapter; --restart begins it again."
        return Interrupted(message, getattr(error, "exit_code", 130))
    if is_out_of_memory(error):
        return ResourceError(
            "out of memory while training. Lower training.micro_batch_tokens (the result stays the same), "
            "or --max-length."
        )
    return error
