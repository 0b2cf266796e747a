"""What one training works with, and what it may do besides learning from its rows.

    settle      settings -> Settled                                                       (settling.py)
    run         load, encode, extras.rows, extras.prepare, attach, extras.attached        (run.py)
    record      the folder says "running", extras.hooks, train, save                      (recording.py)

An extra is made of the settings that ask for it, and its module is imported only then (extras.py). It sees the
`Training` and may change its rows, its learning rate and what happens between its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import Adapting
from rankwise.config.base import JsonObject
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.methods.method import Method, Setup
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import RowEncoding
from rankwise.runs.directory import ClaimedRun
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import WarningCollector
from rankwise.runs.resumable import Resumable
from rankwise.training.losses import Backend
from rankwise.training.preflight import Foresight
from rankwise.training.step import Anchoring
from rankwise.training.trainer import Hook
from rankwise.training.validation import EarlyStopping, Scorer, Validation
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
    lineage: tuple[Round, ...] = ()
    """The rounds that it began with."""
    stored: JsonObject = field(default_factory=dict[str, Any])
    """All settings, as the run's config.json has them."""
    resumable: Resumable | None = None
    begun: Manifest | None = None
    """That of the run which is resumed, or begins again after it has diverged."""
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
