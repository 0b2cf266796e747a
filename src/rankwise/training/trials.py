"""Short trials of a run: attach, train a few steps, measure on rows apart, remove. Nothing is written, nothing stays.

A trial is a whole training in small: its learning rate decays to zero within its own steps, the loop is the run's, and
so are the rows of its first steps. The loaded model and the encoded rows are shared, and the model is bit for bit what
it was afterwards; where a method changes the base's weights, each trial has a copy of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np

from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.data.preparation import Prepared
from rankwise.errors import TrainingError
from rankwise.methods.method import Method, Setup
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Objective
from rankwise.runs.manifest import BackendName
from rankwise.runs.records import silent
from rankwise.training.backend import Backend, backend_named, choose_backend
from rankwise.training.dealt import divided_over
from rankwise.training.losses import sum_loss
from rankwise.training.rng import preserve_rng_state
from rankwise.training.short_runs import trainer_of
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.workload import Workload
from rankwise.training.world import ALONE, LostProcessError, World

RateOf = Callable[[int], float]


@dataclass
class Measure(Hook):
    """The loss on the rows apart after so many steps, or before the first; infinite where training diverged."""

    rows: Prepared
    steps: int
    loss: float = math.inf

    def before_first_step(self, trainer: Trainer) -> None:
        if self.steps == 0:
            self._measure(trainer)

    def after_step(self, trainer: Trainer) -> None:
        if self.steps and trainer.state.step >= self.steps:
            trainer.check_finite()
            self._measure(trainer)

    def _measure(self, trainer: Trainer) -> None:
        layout = partial(trainer.backend.layout, max_tokens=trainer.config.max_batch_tokens)
        batches = divided_over(trainer.world, list(self.rows.measured_rows), layout)
        with trainer.aside():
            total, count = trainer.world.sums(sum_loss(trainer.backend.loss, batches, trainer.state.device))
        loss = total / count
        self.loss = loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Trial:
    rate: float
    loss: float
    """On the rows apart, after the last step or where asked for before the first; infinite where it diverged."""
    losses: tuple[float, ...]
    """Of the training steps."""
    diverged: bool
    seconds: float


@dataclass
class Trials:
    """`prepared` has the rows that trials train on and those that they are measured on (`set_aside`); `setup` is the
    run's own."""

    experiment: Experiment
    model: LoadedModel
    method: Method
    objective: Objective
    setup: Setup
    prepared: Prepared
    world: World = ALONE
    _backend: BackendName | None = field(default=None, init=False)

    def run(
        self, rate: float, steps: int, batch_size: int, *, rate_of: RateOf | None = None, measured: bool = True
    ) -> Trial:
        """Train `steps` steps of `batch_size` rows at this highest rate, or at the rates that `rate_of` gives. Without
        `measured` the rows apart are read before the first step, not after the last."""
        changes = {"steps": steps, "epochs": None, "learning_rate": rate, "batch_size": batch_size}
        config, began = self.setup.training.model_copy(update=changes), time.perf_counter()
        with preserve_rng_state(self.model.precision.device):
            measure, losses = self._trained(config, rate_of, measured)
        diverged = len(losses) < steps or (measured and not math.isfinite(measure.loss))
        return Trial(rate, measure.loss, losses, diverged, time.perf_counter() - began)

    def _trained(
        self, config: TrainingConfig, rate_of: RateOf | None, measured: bool
    ) -> tuple[Measure, tuple[float, ...]]:
        assert config.steps is not None, "the settings are resolved"
        model = self.method.own_copy(self.model)
        measure, losses = Measure(self.prepared, config.steps if measured else 0), list[float]()
        trainable = self.method.attach(model, replace(self.setup, callback=silent))
        try:
            trainer = trainer_of(self, config, trainable, self.prepared, self._backend_of, [measure], world=self.world)
            if rate_of is not None:
                trainer.state.rate = rate_of
            with closing(trainer.run()) as records:  # never to its end, where what is saved would be finished
                losses.extend(record.loss for record in islice(records, config.steps))
        except LostProcessError:
            raise
        except TrainingError:
            measure.loss = math.inf if measured else measure.loss
        finally:
            trainable.remove()
        return measure, tuple(losses)

    def _backend_of(self, work: Workload) -> Backend:
        """Chosen once, and never compiled: compiling takes longer than the trials."""
        if self._backend is None:
            setting = self.setup.training.backend
            setting = "auto" if setting == "compiled" else setting
            self._backend = self.world.share(lambda: choose_backend(work, setting, tokens=0).name)
        return backend_named(self._backend, work)


def set_aside(prepared: Prepared, rows: int, seed: int) -> tuple[Prepared, bool]:
    """The rows of trials: at most so many validation rows, or where there are none (then True), training rows that the
    trials do not train on. A row that a pass sees several times is on one side."""
    rng = np.random.default_rng([seed, 3])
    if len(prepared.measured):
        chosen = rng.permutation(prepared.measured)[:rows]
        return replace(prepared, measured=np.sort(chosen)), False
    every = np.unique(prepared.trained)
    chosen = rng.permutation(every)[: min(rows, len(every) // 4)]
    left = prepared.trained[~np.isin(prepared.trained, chosen)]
    return replace(prepared, trained=left, measured=np.sort(chosen)), True
