"""One cell of the claims: a run of one method at one rate and seed, measured on its way.

It is training as `rankwise train` does it, stopped at a few steps to be measured: the loss on rows that it never sees,
and what became of text that has nothing to do with them. Full fine-tuning holds its weights in float32; on a processor
that can, their products are taken in bfloat16 while a cell is trained and measured, as an adapter's are. A finished
cell is stored and is not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters.adapter_set import AdapterSet
from rankwise.adapters.tuned import Tuned
from rankwise.data.batches import Batches
from rankwise.data.tokens import Tokens
from rankwise.evaluation.items import items_of
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.retention import retention
from rankwise.evaluation.sides import Forward, Sides, with_and_without
from rankwise.evaluation.text import Text
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.models.precision import computes_bfloat16
from rankwise.run.claims import CellResult, Point
from rankwise.run.directory import RunDirectory
from rankwise.run.journal import Journal, cut_journal, read_journal
from rankwise.run.records import Announce, silent
from rankwise.run.writing import sha256_of
from rankwise.spec.experiment import Experiment
from rankwise.spec.tasks import TaskSpec
from rankwise.training.loop import train as train_loop
from rankwise.training.state import TrainState
from rankwise.verbs.beginning import begin
from rankwise.verbs.forms import lowest_of
from rankwise.verbs.methods import lent
from rankwise.verbs.preparing import Writing, prepare
from rankwise.verbs.session import Session
from rankwise.verbs.tracked_prompts import asking_of

MARKS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the run after which it is measured."""

FORMAT = 2
BASE_OF = {"lora": "base", "full": "base-full"}
"""What no training at all gives, in the number format of the method."""


@dataclass(frozen=True)
class ClaimTask:
    """Rows to train on, rows to measure with, and rows of another source, as files. By the first half of those to
    measure with a learning rate is chosen, and the second is reported."""

    name: str
    trained: Path
    measured: Path
    outside: Path | None = None
    batch: int = 8
    longest: int = 512


@dataclass(frozen=True)
class Cell:
    task: str
    method: str
    rows: int
    rate: float
    seed: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


class Cells:
    """All that are finished lie in one file, a line each, with what they depend on: others are not taken for them."""

    def __init__(
        self, tasks: Sequence[ClaimTask], model: LoadedModel, file: Path, text: Text, announce: Announce,
        until: float | None,
    ) -> None:  # fmt: skip
        self.tasks = {task.name: task for task in tasks}
        self._model, self._file, self._text, self._announce, self._until = model.spec.name, file, text, announce, until
        self._held: dict[bool, _Held] = {}
        self._conditions = {task.name: conditions_of(task, model, text) for task in tasks}
        rows = read_journal(file) if file.exists() else []
        if file.exists() and not file.read_bytes().endswith(b"\n"):
            cut_journal(file, rows)
        self.done = {
            Cell(**row["cell"]).key: CellResult(**row["result"])
            for row in rows
            if row["conditions"] == self._conditions.get(row["cell"]["task"])
        }

    def result(self, cell: Cell) -> CellResult:
        """TimeoutError where no time is left for another one."""
        if cell.key not in self.done:
            if self._until is not None and time.monotonic() > self._until:
                raise TimeoutError
            result = self._run(cell)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            row = {"conditions": self._conditions[cell.task], "cell": asdict(cell), "result": result.model_dump()}
            with Journal(self._file) as journal:
                journal.append(row)
            self.done[cell.key] = result
        return self.done[cell.key]

    def _run(self, cell: Cell) -> CellResult:
        task = self.tasks[cell.task]
        experiment = experiment_of(cell, task, self._model)
        full = cell.method in ("full", BASE_OF["full"])
        if full not in self._held:  # one model at a time is enough memory
            self._held = {full: _Held(load(experiment.base, silent))}
        with products_in_bfloat16(full):
            if cell.method in BASE_OF.values():
                return base_cell(self._held[full].model, task)
            return run_cell(experiment, task, self._held[full], self._text, self._announce)


def conditions_of(task: ClaimTask, model: LoadedModel, text: Text) -> str:
    files = [sha256_of(file) for file in (task.trained, task.measured, task.outside) if file is not None]
    said = [FORMAT, model.facts.fingerprint, text.sha256, MARKS, task.batch, task.longest, files]
    return sha256(json.dumps(said).encode()).hexdigest()


@dataclass
class _Held:
    """A base model, and what of it every cell would measure again."""

    model: LoadedModel
    logits: dict[bytes, Tensor] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    """By task."""

    def base_of(self, tuned: Tuned) -> Forward:
        """As `tuned` without what was learned. In the number format of the model a block takes 50 MB on the starter."""
        asked = with_and_without(tuned).base

        def remembered(ids: Tensor) -> Tensor:
            key = ids.numpy().tobytes()
            if key not in self.logits:
                self.logits[key] = asked(ids)
            return self.logits[key]

        return remembered


def base_cell(model: LoadedModel, task: ClaimTask) -> CellResult:
    """What no training at all would give."""
    apart = _documents(task.outside, model) if task.outside is not None else []
    rows = [[one.nats, float(one.tokens)] for one in likelihoods(model.module, apart)]
    return CellResult(points=[], rows=[], choosing=0.0, outside=rows, trainable=0, seconds=0)


def experiment_of(cell: Cell, task: ClaimTask, model: str) -> Experiment:
    method = {base: method for method, base in BASE_OF.items()}.get(cell.method, cell.method)
    rate = {"learning_rate": cell.rate} if cell.rate else {}
    return Experiment(
        model=model, run="cell", adapter={"method": method},
        data={"path": str(task.trained), "rows": cell.rows or None, "max_length": task.longest, "seed": 0,
              "evaluation": str(task.measured)},
        training={"epochs": 1, "batch_size": task.batch, "seed": cell.seed, **rate},
    )  # fmt: skip


def run_cell(experiment: Experiment, task: ClaimTask, held: _Held, text: Text, announce: Announce) -> CellResult:
    model = lent(held.model, experiment)
    prepared = prepare(experiment.data, Writing(model.tokenizer, model.template, model.source.name, None), silent)
    outside = _documents(task.outside, model) if task.outside is not None else []
    tuned, ranks = begin(experiment, model, prepared.trained_rows, silent, None)
    lowest = lowest_of(model, experiment.training, len(prepared.trained_rows), prepared.longest)
    run, asking = RunDirectory.named(experiment.run), asking_of(experiment.evaluation, model, prepared)
    session = Session(experiment, run, model, tuned, ranks, prepared, silent, lowest, asking)
    measured = list(prepared.measured_rows)
    choosing, measured = measured[: len(measured) // 2], measured[len(measured) // 2 :]
    meter, trainable = _Meter(model, tuned, measured, text, held, task.name), session.trainable
    began = time.perf_counter()
    try:
        _train(session, meter, announce)
        rows, apart, loss = meter.rows(measured), meter.rows(outside), meter.loss(choosing)
    finally:
        if isinstance(tuned, AdapterSet):
            tuned.eject()
    return CellResult(
        points=meter.points, rows=rows, choosing=loss, outside=apart, trainable=trainable,
        seconds=round(time.perf_counter() - began - meter.seconds, 3),
    )  # fmt: skip


def _train(session: Session, meter: _Meter, announce: Announce) -> None:
    """As a session does, with a look at what was learned at MARKS."""
    spec, trained = session.experiment.training, session.prepared.trained_rows
    state = session.state()
    marks = {max(1, round(share * state.steps)) for share in MARKS}

    def look(state: TrainState) -> None:
        if state.step in marks:
            session.tuned.train(False)
            meter.measure(state.step)
            session.tuned.train()

    meter.begin()
    with session.forms.computing(session.form(), packing=False) as (loss_of, arrange):
        batches = Batches(trained, spec.rows_per_step(len(trained)), spec.micro_batch_tokens, spec.seed, arrange)
        torch.manual_seed(spec.seed)
        session.tuned.train()
        train_loop(state, batches, loss_of=loss_of, announce=announce, after_step=look)
    session.tuned.train(False)
    session.tuned.settle()


@dataclass
class _Meter:
    model: LoadedModel
    tuned: Tuned
    documents: Sequence[Tokens]
    text: Text
    held: _Held
    task: str
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.points: list[Point] = []
        self.sides = Sides(self.held.base_of(self.tuned), with_and_without(self.tuned).tuned)

    def begin(self) -> None:
        """What nothing has changed yet is the base."""
        if self.task not in self.held.losses:
            self.held.losses[self.task] = self.loss(self.documents)
        self.points.append(Point(step=0, loss=self.held.losses[self.task], kl=0.0, delta_nll=0.0))

    def measure(self, step: int) -> None:
        began = time.perf_counter()
        loss, kept = self.loss(self.documents), retention(self.sides, self.text)
        self.points.append(Point(step=step, loss=loss, kl=kept.kl, delta_nll=kept.delta_nll))
        self.seconds += time.perf_counter() - began

    def loss(self, documents: Sequence[Tokens]) -> float:
        nats, tokens = (sum(column) for column in zip(*self.rows(documents), strict=True))
        return nats / tokens

    def rows(self, documents: Sequence[Tokens]) -> list[list[float]]:
        found = likelihoods(self.model.module, documents)
        return [[one.nats, float(one.tokens)] for one in found]


def _documents(file: Path, model: LoadedModel) -> list[Tokens]:
    found = items_of(TaskSpec(task="outside", data=str(file)), replace(model, context_length=1024))
    return [item.documents[-1] for item in found.items]


@contextmanager
def products_in_bfloat16(wanted: bool) -> Iterator[None]:
    """Of matrices that are held in float32, where torch and the processor can."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not (wanted and matmul is not None and computes_bfloat16(torch.device("cpu"))[0]):
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
