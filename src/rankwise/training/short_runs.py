"""A short training in memory: an adapter is attached, learns for some steps, is measured, and is removed again.

    with short_run(...) as run:      the model with what was learned; afterwards the base, bit for bit

Its schedule decays within its own steps. Nothing is written, and the loop is that of every training (trainer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import Adapting
from rankwise.config.training import TrainingConfig
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.rows.images.processor import augmentation
from rankwise.rows.preparation import Prepared
from rankwise.runs.manifest import BackendName
from rankwise.runs.records import Callback, Event, StatusMessage, WarningMessage, silent
from rankwise.training.backend import backend_named, choose_backend
from rankwise.training.losses import Backend
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.workload import Presentation, Workload, batches_of
from rankwise.training.world import ONE_PROCESS, World


def trainer_of(
    trainable: Trainable, objective: Objective, config: TrainingConfig, prepared: Prepared, presentation: Presentation,
    *, choice: Callable[[Workload], Backend], hooks: Sequence[Hook], callback: Callback = silent,
    world: World = ONE_PROCESS,
) -> Trainer:  # fmt: skip
    """Over the rows that a run with these settings would see, in their order. `choice` chooses the backend."""
    backend = choice(Workload.of(trainable, objective, config, prepared, presentation, callback))
    vary = augmentation(presentation.images, config.seed)
    batches = batches_of(prepared, config, backend.layout, vary, world)
    return Trainer(trainable, batches, config, backend, hooks, world=world)


@dataclass(frozen=True)
class ShortRun:
    backend: BackendName
    seconds: float
    """How long a step took on average."""


@contextmanager
def short_run(
    adapter: Adapting, config: TrainingConfig, model: LoadedModel, objective: Objective, prepared: Prepared,
    presentation: Presentation, *, callback: Callback, stepped: Callable[[], None], backend: BackendName | None = None,
) -> Iterator[ShortRun]:  # fmt: skip
    """Train, and leave the adapter attached inside the block. `config` names its steps and learning rate, and `stepped`
    is called after each step. `backend` is that of a run before, which need not be compared with the model's own code
    again."""
    rows, steps = prepared.trained_rows, config.steps or 1
    tokens = steps * config.rows_per_step(len(rows)) * rows.tokens // len(rows)

    def choice(work: Workload) -> Backend:
        return choose_backend(work, config.backend, tokens) if backend is None else backend_named(backend, work)

    trainable = method_of(adapter).attach(model, Setup(
        config, steps, rows, heads=objective.heads(model), load=partial(load, kind=objective.kind),
        described="a short training", callback=callback,
    ))  # fmt: skip
    try:
        trainer = trainer_of(
            trainable, objective, config, prepared, presentation, choice=choice, hooks=[Sentences(callback)],
            callback=callback,
        )  # fmt: skip
        seconds: list[float] = []
        for record in trainer.run():
            seconds.append(record.seconds)
            stepped()
        yield ShortRun(trainer.backend.name, float(np.mean(seconds)))
    finally:
        trainable.remove()


@dataclass(frozen=True)
class Sentences(Hook):
    """Warnings and sentences go on to whoever waits; the records of steps are those of no run."""

    callback: Callback

    def on_event(self, event: Event) -> None:
        if isinstance(event, WarningMessage | StatusMessage):
            self.callback(event)
