"""Budgets of a result: how far it may move from its base on ordinary text, and how much accuracy it may lose on tasks.

A budget of forgetting: the anchor's weight follows what is measured, and the result keeps the budget.

    between steps    weight <- weight * (divergence / budget)^2, by at most a factor of 4 at a time, and never above
                     the one that was given
    at the end       strength = the largest s in [0, 1] at which divergence(s) <= budget

A budget with room to spare lowers the weight, so that the rows are learned better. A tight one is kept by the strength,
which costs less of the loss than a weight beyond the usual one (design/0013-keeping.md).

The divergence is measured on ordinary text (evaluation/prose.txt) that is neither trained on nor the anchor's. Between
steps a few of its blocks tell where the run is heading, at the end all of them count. The weight follows from the
records alone, so a run that is resumed goes on with it.

A budget of accuracy: how many percentage points the result may lose on tasks that it is not trained on.

    lost(s) = the largest, over the tasks, of accuracy(base) - accuracy(s)      on every second row of each task
    strength = the largest s of 1, 0.9, … 0.1 at which 100 lost(s) <= points

The strength is looked for by halving, as if accuracy fell with it. The other rows of each task decide nothing, so they
say what the result keeps, with a paired interval (evaluation/intervals.py). Where no strength keeps the budget, nothing
is scaled, and the run says what each would cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from math import ceil

from rankwise.base.loaded import LoadedModel
from rankwise.config.forgetting import AnchorConfig
from rankwise.config.tasks import TaskConfig, task_named
from rankwise.errors import ConfigError, DataError
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.requests import Request, requests_of
from rankwise.evaluation.task import refuse_unfit, score_task
from rankwise.evaluation.task_documents import identities
from rankwise.evaluation.text import PlainText, Text, cut
from rankwise.inference.generate import BATCH_SIZE
from rankwise.runs.data_report import DataReport
from rankwise.runs.manifest import KeptAccuracy, KeptBudget, KeptTask, Results
from rankwise.runs.metrics_log import History
from rankwise.runs.records import BudgetRecord, StatusMessage, WarningMessage, silent
from rankwise.training.extras.anchor import Anchor, BaseOnText
from rankwise.training.losses import Backend
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.training import Extra, Training
from rankwise.training.validation import Validation
from rankwise.training.world import ONE_PROCESS, World, computed_by_all

BLOCKS, LENGTH = 16, 256
BETWEEN_STEPS = 4
"""Blocks that are measured between steps."""
MEASUREMENTS = 12
"""About how often the divergence is measured during a run."""
MOST = 4.0
"""Factor by which the weight changes at a time."""
LOWEST = 0.01
HALVINGS = 7
"""How often the search for the strength halves its interval."""


class Budgets(Extra):
    """A budget of forgetting, or of accuracy on tasks."""

    first = True

    def __init__(self, config: AnchorConfig) -> None:
        self.config = config
        self.tasks: tuple[AccuracyTask, ...] = ()

    def prepare(self, training: Training) -> None:
        """ConfigError and DataError where a task cannot tell how accurate a model is, or is trained on."""
        if self.config.most_points is not None:
            names, rows = dict.fromkeys(self.config.tasks), self.config.task_rows
            report = training.prepared.data_report
            self.tasks = tuple(_task(name, rows, training.model, report) for name in names)

    def hooks(self, training: Training, backend: Backend, validation: Validation) -> Sequence[Hook]:
        if (points := self.config.most_points) is not None:
            return [AccuracyBudget(points, self.tasks, training.model, validation, training.session.world)]
        most, anchor = self.config.most_nats, training.anchor
        assert most is not None and isinstance(anchor, Anchor), "the training is held to its base"
        ordinary = replace(anchor.base, text=ordinary_text(training.model))
        return [ForgettingBudget(most, ordinary, anchor, validation, ForgettingBudget.interval_of(training.steps))]


def ordinary_text(model: LoadedModel) -> Text:
    content = (files("rankwise.evaluation") / "prose.txt").read_text(encoding="utf-8")
    return cut(PlainText("ordinary text", content), model, blocks=BLOCKS, length=LENGTH, least=1)


@dataclass
class ForgettingBudget(Hook):
    """`records` are all measurements so far, an earlier process's too."""

    most: float
    ordinary: BaseOnText
    anchor: Anchor
    validation: Validation
    interval: int
    records: list[BudgetRecord] = field(default_factory=list)
    outcome: KeptBudget | None = None

    def __post_init__(self) -> None:
        self._highest = self.anchor.weight

    @staticmethod
    def interval_of(steps: int) -> int:
        return max(1, ceil(steps / MEASUREMENTS))

    def take_up(self, history: History) -> None:
        self.records = list(history.budget)
        if self.records:
            self.anchor.weight = self.records[-1].weight

    def recorded(self, results: Results) -> Results:
        return results.model_copy(update={"budget": self.outcome})

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if state.finished or state.step % self.interval:
            return
        count = len(self.ordinary.text.blocks)
        few = range(0, count, max(1, count // BETWEEN_STEPS))
        with trainer.aside():
            apart = self.ordinary.divergence(few)
        change = min(MOST, max(1 / MOST, (apart / self.most) ** 2))
        self.anchor.weight = min(self._highest, max(LOWEST, self.anchor.weight * change))
        record = BudgetRecord(state.step, apart, self.anchor.weight)
        self.records.append(record)
        trainer.emit(record)

    def after_training(self, trainer: Trainer) -> None:
        """Before anything is measured or written of the result."""
        every = range(len(self.ordinary.text.blocks))
        before = self.validation.loss_after(self.validation.result_step)
        loss = None if before is None else before.loss
        with trainer.aside():
            full = self.ordinary.divergence(every)
            strength, apart = (1.0, full) if full <= self.most else self._strength(trainer, every)
        _weaken(trainer, self.validation, strength)
        self.outcome = outcome = KeptBudget(
            forget_at_most=self.most, divergence=apart, strength=strength, divergence_at_full_strength=full,
            validation_loss_at_full_strength=loss,
        )  # fmt: skip
        trainer.emit(StatusMessage(self._summary(outcome)))

    def _strength(self, trainer: Trainer, blocks: Sequence[int]) -> tuple[float, float]:
        """By halving: divergence grows with the strength."""
        low, high, apart = 0.0, 1.0, 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            with trainer.trainable.scaled(middle):
                measured = self.ordinary.divergence(blocks)
            if measured <= self.most:
                low, apart = middle, measured
            else:
                high = middle
        return low, apart

    def _summary(self, outcome: KeptBudget) -> str:
        line = (
            f"forgetting on ordinary text: {outcome.divergence:.4f} nats per token, within the budget of {self.most:g}"
        )
        if outcome.strength == 1.0:
            return line
        line += (
            f". The change was scaled to {outcome.strength:.3f} for that; at full strength it is "
            f"{outcome.divergence_at_full_strength:.4f}"
        )
        return line + _other_loss(self.validation, outcome.validation_loss_at_full_strength)


def _weaken(trainer: Trainer, validation: Validation, strength: float) -> None:
    if strength < 1.0:
        trainer.trainable.weaken(strength)
        validation.measure_again(trainer)


def _other_loss(validation: Validation, at_full_strength: float | None) -> str:
    """What the validation loss would be at full strength."""
    after = validation.loss_after(validation.result_step)
    if after is None or at_full_strength is None:
        return ""
    return f" and the validation loss is {at_full_strength:.4f}, not {after.loss:.4f}"


STRENGTHS = tuple(tenths / 10 for tenths in range(1, 11))
METRIC = "accuracy"
REST = "On the other half of the rows"
Hits = list[list[float]]
"""For each row [1 or 0, 1]."""


@dataclass(frozen=True)
class AccuracyTask:
    config: TaskConfig
    requests: tuple[Request, ...]

    @property
    def deciding(self) -> tuple[Request, ...]:
        return self.requests[::2]

    @property
    def validation_requests(self) -> tuple[Request, ...]:
        return self.requests[1::2]

    def hits(self, model: LoadedModel, requests: Sequence[Request], world: World) -> Hits:
        """Each process scores its share of the requests."""
        dealing = partial(computed_by_all, world)
        scored = score_task(self.config, requests, model, silent, batch_size=BATCH_SIZE, who="", dealing=dealing)
        return scored.scores[METRIC].sums


def _task(name: str, rows: int, model: LoadedModel, report: DataReport) -> AccuracyTask:
    config = task_named(name, rows=rows)
    if METRIC not in config.score:
        raise ConfigError([
            f'training.anchor.tasks: the task "{name}" is scored by {", ".join(config.score)}, and a budget of '
            "accuracy needs tasks with a choice of answers (score: accuracy), such as arc_easy."
        ])  # fmt: skip
    hashes = {file.sha256 for file in report.files} | set(report.replay.origins if report.replay is not None else ())
    if shared := [file for identity, file in identities(config).items() if identity in hashes]:
        raise DataError(
            f"{shared[0]}: is trained on, so it cannot show what the model has forgotten (training.anchor.tasks)."
        )
    requests = requests_of(config, model).requests
    refuse_unfit(config, requests)
    if len(requests) < 2:
        raise DataError(f'{config.data}: {len(requests)} rows of the task "{name}" are too few to tell the accuracy.')
    return AccuracyTask(config, requests)


@dataclass
class AccuracyBudget(Hook):
    points: float
    tasks: Sequence[AccuracyTask]
    model: LoadedModel
    validation: Validation
    world: World = ONE_PROCESS
    outcome: KeptAccuracy | None = None
    _lost: dict[float, float] = field(default_factory=dict[float, float])
    """Percentage points by strength."""

    def recorded(self, results: Results) -> Results:
        return results.model_copy(update={"accuracy_budget": self.outcome})

    def after_training(self, trainer: Trainer) -> None:
        """Before anything is measured or written of the result."""
        names = ", ".join(task.config.task for task in self.tasks)
        trainer.emit(StatusMessage(f"measuring the accuracy on {names}, for the budget"))
        before = self.validation.loss_after(self.validation.result_step)
        with trainer.aside():
            with trainer.trainable.base():
                deciding = [task.hits(self.model, task.deciding, self.world) for task in self.tasks]
                base = [task.hits(self.model, task.validation_requests, self.world) for task in self.tasks]
            strength = self._strength(trainer, deciding)
        is_kept = strength is not None
        strength = 1.0 if strength is None else strength
        _weaken(trainer, self.validation, strength)
        with trainer.aside():
            result = [task.hits(self.model, task.validation_requests, self.world) for task in self.tasks]
        self.outcome = outcome = KeptAccuracy(
            points=self.points, is_kept=is_kept, strength=strength, lost=self._lost[strength],
            lost_at_full_strength=self._lost[1.0],
            tasks=tuple(map(_task_result, self.tasks, base, result)),
            validation_loss_at_full_strength=None if before is None else before.loss,
        )  # fmt: skip
        trainer.emit((StatusMessage if is_kept else WarningMessage)(self._summary(outcome)))

    def _strength(self, trainer: Trainer, base: Sequence[Hits]) -> float | None:
        """None where none keeps the budget."""
        *lower, whole = STRENGTHS
        if self._lost_at(whole, trainer, base) <= self.points:
            return whole
        if self._lost_at(lower[0], trainer, base) > self.points:
            return None
        low, high = 0, len(lower)
        while high - low > 1:
            middle = (low + high) // 2
            kept = self._lost_at(STRENGTHS[middle], trainer, base) <= self.points
            low, high = (middle, high) if kept else (low, middle)
        return STRENGTHS[low]

    def _lost_at(self, strength: float, trainer: Trainer, base: Sequence[Hits]) -> float:
        """In percentage points, of the task that loses most."""
        with trainer.trainable.scaled(strength):
            own = [task.hits(self.model, task.deciding, self.world) for task in self.tasks]
        lost = max(100 * (_share(before) - _share(after)) for before, after in zip(base, own, strict=True))
        self._lost[strength] = lost
        return lost

    def _summary(self, outcome: KeptAccuracy) -> str:
        measured = "; ".join(
            f"{task.task} {task.base:.1%} -> {task.result:.1%} ({100 * task.difference:+.1f} points, "
            f"{100 * task.low:+.1f} to {100 * task.high:+.1f}, n = {task.rows})"
            for task in outcome.tasks
        )  # fmt: skip
        if not outcome.is_kept:
            costs = ", ".join(f"{lost:.1f} at {strength:g}" for strength, lost in sorted(self._lost.items()))
            return (
                f"no strength of 0.1 or more keeps the budget of {outcome.points:g} percentage points of accuracy. The "
                f"points lost are {costs}. The change is written at full strength. {REST}: {measured}"
            )
        line = f"accuracy lost: {outcome.lost:.1f} percentage points, within the budget of {outcome.points:g}"
        if outcome.strength < 1.0:
            line += (
                f". The change was scaled to {outcome.strength:g} for that; at full strength, "
                f"{outcome.lost_at_full_strength:.1f} points are lost"
            )
            line += _other_loss(self.validation, outcome.validation_loss_at_full_strength)
        return f"{line}. {REST}: {measured}"


def _share(hits: Hits) -> float:
    return sum(one[0] for one in hits) / len(hits)


def _task_result(task: AccuracyTask, base: Hits, result: Hits) -> KeptTask:
    apart = difference(METRICS[METRIC], base, result)
    return KeptTask(
        task=task.config.task, rows=apart.n, base=apart.a, result=apart.b, difference=apart.difference, low=apart.low,
        high=apart.high,
    )  # fmt: skip
