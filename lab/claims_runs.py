"""One run of the claims: of one method at one rate and seed, measured on its way.

It is training as `rankwise train` does it, stopped at a few steps to be measured: the loss on rows that it never sees,
and what became of text that has nothing to do with them. All methods compute in float32, so that none is measured with
other rounding than its base or another method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from claims_records import CellResult, Point
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.experiment import Experiment
from rankwise.config.tasks import TaskConfig
from rankwise.errors import EvaluationError, TrainingError, first_line
from rankwise.evaluation.forgetting import compared
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.requests import requests_of
from rankwise.evaluation.subject import BaseAndTuned, Forward, base_and_tuned
from rankwise.evaluation.text import Text
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.preparing import prepare
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import Callback, silent
from rankwise.system.files import sha256_of
from rankwise.training.backend import choose_backend
from rankwise.training.hooks import ReportHook
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.workload import Presentation, Workload

MARKS = (0.25, 0.5, 0.75)
"""Shares of the run after which it is measured, beside its beginning and its end."""
BASE = "base"
"""The method that is none."""


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

    @property
    def files(self) -> list[str]:
        """What is in them, as SHA-256."""
        return [sha256_of(file) for file in (self.trained, self.measured, self.outside) if file is not None]


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


def experiment_of(cell: Cell, task: ClaimTask, model: str) -> Experiment:
    rate = {"learning_rate": cell.rate} if cell.rate else {}
    return Experiment(
        model={"name": model, "dtype": "float32"}, run="cell",
        adapter={"method": "lora" if cell.method == BASE else cell.method},
        data={"path": str(task.trained), "rows": cell.rows or None, "max_length": task.longest, "seed": 0,
              "validation": str(task.measured)},
        training={"epochs": 1, "batch_size": task.batch, "seed": cell.seed, **rate},
    )  # fmt: skip


@dataclass
class Held:
    """A base model, and what of it every cell would measure again."""

    model: LoadedModel
    logits: dict[bytes, Tensor] = field(default_factory=dict)
    begun: dict[str, Point] = field(default_factory=dict)
    """By task: before its first step a run of any method is its base."""

    def base_of(self, tuned: Trainable) -> Forward:
        """As `tuned` without what was learned. A block of 128 tokens takes 25 MB on the starter."""
        asked = base_and_tuned(tuned).base

        def remembered(ids: Tensor) -> Tensor:
            key = ids.numpy().tobytes()
            if key not in self.logits:
                self.logits[key] = asked(ids)
            return self.logits[key]

        return remembered


def base_cell(model: LoadedModel, task: ClaimTask) -> CellResult:
    """What no training at all would give."""
    apart = _documents(task.outside, model) if task.outside is not None else []
    return CellResult(points=[], choosing=[], outside=_rows(model, apart), seconds=0)


def run_cell(experiment: Experiment, task: ClaimTask, held: Held, text: Text, callback: Callback) -> CellResult:
    """A run whose loss is no number any more is a result too, of a rate that is too high."""
    method = method_of(experiment.adapter)
    model = method.own_copy(held.model)
    prepared = prepare(experiment.data, TextWriting(model.tokenizer, model.template, model.source.name, None), silent)
    outside = _documents(task.outside, model) if task.outside is not None else []
    trained, rows = prepared.trained_rows, list(prepared.measured_rows)
    config = experiment.training.resolved(len(trained), model.width, experiment.auto_rate)
    steps = config.total_steps(len(trained))
    tuned = method.attach(model, Setup(config, steps, trained, load=load))
    meter = _Meter(model, tuned, rows[len(rows) // 2 :], text, held)
    tuned.train(False)
    meter.begin(task.name)
    try:
        work = Workload.of(tuned, objective_named("causal-lm"), config, prepared, Presentation(), silent)
        tokens = steps * config.rows_per_step(len(trained)) * trained.tokens // len(trained)
        backend = choose_backend(work, config.backend, tokens)
        hooks = [
            Look(meter, frozenset(max(1, round(share * steps)) for share in MARKS) - {steps}),
            ReportHook(callback),
        ]
        trainer = Trainer(tuned, Batches.of(trained, config, backend.layout), config, backend, hooks)
        for _ in trainer.run():
            pass
        meter.measure(steps)
        return CellResult(
            points=meter.points, choosing=_rows(model, rows[: len(rows) // 2]), outside=_rows(model, outside),
            seconds=round(trainer.seconds, 3),
        )  # fmt: skip
    except (TrainingError, EvaluationError) as error:
        return CellResult(points=meter.points[:1], choosing=[], outside=[], seconds=0.0, failed=first_line(error))
    finally:
        tuned.remove()


@dataclass(frozen=True)
class Look(Hook):
    """Measures what was learned after the steps of `marks`."""

    meter: _Meter
    marks: frozenset[int]

    def after_step(self, trainer: Trainer) -> None:
        if trainer.state.step in self.marks:
            with trainer.aside():
                self.meter.measure(trainer.state.step)


@dataclass
class _Meter:
    model: LoadedModel
    tuned: Trainable
    documents: Sequence[Tokens]
    text: Text
    held: Held

    def __post_init__(self) -> None:
        self.points: list[Point] = []
        self.sides = BaseAndTuned(self.held.base_of(self.tuned), base_and_tuned(self.tuned).tuned)

    def begin(self, task: str) -> None:
        if task not in self.held.begun:
            self.measure(0)
            self.held.begun[task] = self.points.pop()
        self.points.append(self.held.begun[task])

    def measure(self, step: int) -> None:
        (blocks,) = compared(self.sides.base, [self.sides.tuned], self.text)
        kept = [[block.kl, float(block.positions)] for block in blocks]
        whole = step == 0 or step >= self.tuned.first_final_step
        self.points.append(Point(step=step, rows=_rows(self.model, self.documents), blocks=kept, whole=whole))


def _rows(model: LoadedModel, documents: Sequence[Tokens]) -> list[list[float]]:
    return [one.sums for one in likelihoods(model.module, documents)]


def _documents(file: Path, model: LoadedModel) -> list[Tokens]:
    found = requests_of(TaskConfig(task="outside", data=str(file)), replace(model, context_length=1024))
    return [item.documents[-1] for item in found.requests]
