"""`--tune`: short trials on the run's own rows choose its learning rate before it begins.

    range     one trial whose rate grows at every step; rates at which its loss rises far are ruled out
    stages    successive halving over the others

The trials are measured on validation rows. Where there are none, they set training rows aside, which the run itself
learns from. Nothing that is written depends on them but the learning rate and the record of how it was chosen.

Short trials of a run: attach, train a few steps, measure on rows apart, remove. Nothing is written, nothing stays.

A trial is a whole training in small: its learning rate decays to zero within its own steps, the loop is the run's, and
so are the rows of its first steps. The loaded model and the encoded rows are shared, and the model is bit for bit what
it was afterwards; where a method changes the base's weights, each trial has a copy of them.

Which rate to take, from the held-out losses of short trials: successive halving, and a parabola over log rate.

    stage 1   a few rates a factor of two apart: for each a training of a few steps, decayed to zero within them
    stage 2   the two rates around the least point of a parabola through these losses, a factor of the square root of
              two apart, for more steps
    best      the least point of a parabola as curved as that of stage 1 through the losses of stage 2
    choice    default x (best / default)^w,   w = n / (n + HALF),   n steps in a trial of stage 2

The best rate of a trial that decays to zero within its own steps hardly depends on how many there are, but grows with
the root of the rows in a step (lab/tuning.md), so a trial's rate stands for `run rate x sqrt(its rows / the run's)`.
What is found by few steps is uncertain, and defaults are not far off, so the choice is drawn towards the default by as
much as the trials are short. Rates are counted in half octaves from the default: rate = default x 2^(x / 2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import Adapting
from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError, TrainingError, is_out_of_memory
from rankwise.methods.method import Method, Setup
from rankwise.objectives.objective import Objective
from rankwise.planning.tuning import TOO_COSTLY, Stage, TrialPlan
from rankwise.rows.preparation import Prepared
from rankwise.runs.manifest import BackendName, TrialFacts, Tuning
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage, silent
from rankwise.system.memory import available_memory
from rankwise.system.signals import deferred
from rankwise.training.backend import backend_named, choose_backend
from rankwise.training.losses import Backend, sum_loss
from rankwise.training.preflight import Foresight, out_of_memory
from rankwise.training.short_runs import trainer_of
from rankwise.training.state import preserve_rng_state
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.training import Extra, Training
from rankwise.training.workload import Presentation, Workload
from rankwise.training.world import ONE_PROCESS, LostProcessError, World, divided_over

WIDEST = 4.0
"""Half octaves by which the best of the trials may be off the default."""
HALF = 10
"""Steps of a trial that count as much as the default."""
FLAT = 0.01
LossAt = Callable[[Stage, float], float]
"""The held-out loss of a trial that stands for a rate, in half octaves; infinite where it diverged."""


@dataclass(frozen=True)
class RateChoice:
    x: float
    best: float
    """Before it was drawn towards the default."""
    flat: tuple[float, float] | None
    """Between which rates the parabola is less than FLAT above its least point."""


def choose(stages: Sequence[Stage], ceiling: float, loss_at: LossAt, before: float) -> RateChoice | None:
    """By successive halving over rates below the ceiling, which may leave only the lowest. None, without the second
    stage, where no trial of the first ended below the loss `before` training."""
    first, second = stages
    spread = [2 * (at - (first.rates - 1) / 2) for at in range(first.rates)]
    points = [(x, loss_at(first, x)) for x in spread if x <= ceiling or x == spread[0]]
    if min(loss for _, loss in points) >= before:
        return None
    curve = parabola(points)
    middle = min(max(curve.least, -WIDEST), WIDEST, max(ceiling - 0.5, spread[0]))
    low, high = middle - 0.5, middle + 0.5
    best = curve.moved(middle, loss_at(second, low), loss_at(second, high))
    best = min(max(best, low, -WIDEST), high, WIDEST)  # stage 1 is too short to tell how far beyond
    return RateChoice(best * second.steps / (second.steps + HALF), best, curve.flat(best))


@dataclass(frozen=True)
class Parabola:
    """loss = height + curvature (x - least)^2"""

    least: float
    height: float
    curvature: float

    def moved(self, middle: float, low: float, high: float) -> float:
        """The least point of one as curved as this through two losses half an octave apart, around `middle`."""
        if not math.isfinite(low + high) or self.curvature <= 0:
            return middle - 0.5 if low <= high else middle + 0.5
        return middle - (high - low) / (2 * self.curvature)

    def flat(self, around: float) -> tuple[float, float] | None:
        if self.curvature <= 0 or self.height <= 0:
            return None
        half = math.sqrt(FLAT * self.height / self.curvature)
        return around - half, around + half


def parabola(points: Sequence[tuple[float, float]]) -> Parabola:
    """Through the best point and its neighbours; where these are too few or not curved, its least point is the best."""
    finite = [(x, loss) for x, loss in points if math.isfinite(loss)]
    if not finite:
        return Parabola(points[0][0], math.inf, 0.0)
    at = min(range(len(finite)), key=lambda item: finite[item][1])
    near = finite[max(0, min(at - 1, len(finite) - 3)) :][:3]
    if len(near) < 3:
        return Parabola(*finite[at], 0.0)
    (x0, y0), (x1, y1), (x2, y2) = near
    slope, next_slope = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (next_slope - slope) / (x2 - x0)
    if curvature <= 0:
        return Parabola(*finite[at], 0.0)
    least = (x0 + x1) / 2 - slope / (2 * curvature)
    return Parabola(min(max(least, x0), x2), finite[at][1], curvature)


RateOf = Callable[[int], float]


@dataclass
class Measure(Hook):
    """Measures the loss on held-out rows after a number of steps, or before the first; infinite if it diverged."""

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
    """The loss of each training step."""
    diverged: bool
    seconds: float


@dataclass
class Trials:
    """`prepared` has the rows that trials train on and those that they are measured on (`set_aside`); `setup` is the
    run's own."""

    model: LoadedModel
    method: Method
    objective: Objective
    setup: Setup
    adapter: Adapting
    presentation: Presentation
    prepared: Prepared
    world: World = ONE_PROCESS
    _backend: BackendName | None = field(default=None, init=False)

    def run(
        self, rate: float, steps: int, batch_size: int, *, rate_of: RateOf | None = None, with_loss: bool = True
    ) -> Trial:
        """Train `steps` steps of `batch_size` rows at this highest rate, or at the rates that `rate_of` gives. Without
        `with_loss` the rows apart are read before the first step, not after the last."""
        changes = {"steps": steps, "epochs": None, "learning_rate": rate, "batch_size": batch_size}
        config, began = self.setup.training.model_copy(update=changes), time.perf_counter()
        with preserve_rng_state(self.model.precision.device):
            measure, losses = self._trained(config, rate_of, with_loss)
        diverged = len(losses) < steps or (with_loss and not math.isfinite(measure.loss))
        return Trial(rate, measure.loss, losses, diverged, time.perf_counter() - began)

    def _trained(
        self, config: TrainingConfig, rate_of: RateOf | None, with_loss: bool
    ) -> tuple[Measure, tuple[float, ...]]:
        assert config.steps is not None, "the settings are resolved"
        model = self.method.own_copy(self.model)
        measure, losses = Measure(self.prepared, config.steps if with_loss else 0), list[float]()
        trainable = self.method.attach(model, replace(self.setup, callback=silent))
        try:
            trainer = trainer_of(
                trainable, self.objective, config, self.prepared, self.presentation, choice=self._backend_of,
                hooks=[measure], world=self.world,
            )  # fmt: skip
            if rate_of is not None:
                trainer.state.rate = rate_of
            with closing(trainer.run()) as records:  # never to its end, where what is saved would be finished
                losses.extend(record.loss for record in islice(records, config.steps))
        except LostProcessError:
            raise
        except TrainingError:
            measure.loss = math.inf if with_loss else measure.loss
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
    if len(prepared.validation):
        chosen = rng.permutation(prepared.validation)[:rows]
        return replace(prepared, validation=np.sort(chosen)), False
    every = np.unique(prepared.trained)
    chosen = rng.permutation(every)[: min(rows, len(every) // 4)]
    left = prepared.trained[~np.isin(prepared.trained, chosen)]
    return replace(prepared, trained=left, validation=np.sort(chosen)), True


CALM, RISES = 3, 1.5
"""First steps of the range, whose rates are low, and times their highest loss from which training has diverged."""
RANGE = (-4.0, 9.0)
"""Half octaves over which the rate grows in the range."""
LEARNED = 0.02
"""By what share the best trial must lower the loss; where it does not, as with a new head on few rows, which rate is
best in it says nothing of the run."""
LEAST_ROWS = 8
"""Rows apart without which no trial is worth anything."""


class TunedRate(Extra):
    """Trials choose the learning rate, or chose it when the run that goes on began."""

    def prepare(self, training: Training) -> None:
        session, begun = training.session, training.begun
        if begun is None:
            trials = Trials(
                model=training.model, method=training.method, objective=training.objective, setup=training.setup,
                adapter=training.adapter, presentation=training.presentation, prepared=training.prepared,
                world=session.world,
            )  # fmt: skip
            with deferred(session.world.is_several):
                self.tuning = tune(trials, training.forecast, session.callback)
        elif (recorded := begun.tuning) is not None:
            self.tuning = recorded
        else:
            raise RunError(f"{session.run.folder} does not record the learning rate that trials chose. Use --restart.")
        training.config = training.config.model_copy(update={"learning_rate": self.tuning.learning_rate})

    def facts(self) -> dict[str, Any]:
        return {"tuning": self.tuning}


def tune(trials: Trials, forecast: Foresight | None, callback: Callback) -> Tuning:
    setup, config, rows = trials.setup, trials.setup.training, trials.prepared.rows_in_pass
    default, row_tokens = float(config.learning_rate), trials.prepared.tokens_in_pass / rows
    part = trials.adapter.trial_part
    plan = TrialPlan.of(setup.steps, config.rows_per_step(rows), row_tokens, part)
    prepared, from_training = set_aside(trials.prepared, plan.rows if plan else 0, config.seed)
    reason = trials.world.share(lambda: _unfit(trials, len(prepared.validation)) if plan else TOO_COSTLY)
    if plan is None or reason is not None:
        tuning = Tuning(learning_rate=default, default=default, why=f"the default, because {reason}")
        callback(StatusMessage("\n".join(tuning.lines())))
        return tuning
    search = Search(replace(trials, prepared=prepared), plan, default, callback)
    seconds = _forecast(forecast, plan)
    callback(StatusMessage(_announced(plan, len(prepared.validation), from_training, seconds)))
    try:
        tuning = search.run()
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(forecast, config.auto_batch) from None
        raise
    tuning = tuning.model_copy(update={
        "rows": len(prepared.validation), "rows_from": "training" if from_training else "validation",
        "forecast_seconds": seconds, "steps": plan.cost_of(one.steps for one in tuning.trials),
    })  # fmt: skip
    callback(StatusMessage("\n".join(tuning.lines())))
    return tuning


@dataclass
class Search:
    """The trials of one run, in their order."""

    trials: Trials
    plan: TrialPlan
    default: float
    callback: Callback
    done: list[TrialFacts] = field(default_factory=list)
    before: float = math.inf
    """The loss before training."""

    def run(self) -> Tuning:
        began = time.perf_counter()
        ceiling = self._range()
        choice = choose(self.plan.stages, ceiling, self._loss_at, self.before)
        after = min((one.loss for one in self.done if one.loss is not None), default=math.inf)
        if choice is None or after > (1 - LEARNED) * self.before:
            return Tuning(
                learning_rate=self.default, default=self.default, trials=tuple(self.done), loss_before=self.before,
                why=f"the default, because the trials learned too little to tell rates apart: the loss was "
                f"{self.before:.4f} before training and {after:.4f} at best", seconds=time.perf_counter() - began,
            )  # fmt: skip
        rate = self._rate(choice.x)
        flat = [None, None] if choice.flat is None else [self._rate(end) for end in choice.flat]
        return Tuning(
            learning_rate=rate, default=self.default, why=self._why(choice, ceiling), trials=tuple(self.done),
            loss_before=self.before, flat_from=flat[0], flat_to=flat[1], seconds=time.perf_counter() - began,
        )  # fmt: skip

    def _range(self) -> float:
        """The rate, in half octaves from the default, above which training diverges."""
        count, (low, high) = self.plan.range_steps, RANGE
        grown = [low + (high - low) * at / (count - 1) for at in range(count)]
        trial = self.trials.run(
            self._trial_rate(high), count, self.plan.batch, rate_of=lambda step: self._trial_rate(grown[step]),
            with_loss=False,
        )  # fmt: skip
        self.before = trial.loss
        self._add(0, trial, count)
        return ceiling_of(trial.losses, grown)

    def _loss_at(self, stage: Stage, x: float) -> float:
        trial = self.trials.run(self._trial_rate(x), stage.steps, self.plan.batch)
        self._add(1 + self.plan.stages.index(stage), trial, stage.steps)
        return trial.loss

    def _trial_rate(self, x: float) -> float:
        """That stands for a rate of the run."""
        return self._rate(x + self.plan.shift)

    def _add(self, stage: int, trial: Trial, steps: int) -> None:
        loss = trial.loss if stage and not trial.diverged else None
        stands_for = trial.rate * 2 ** (-self.plan.shift / 2)
        self.done.append(TrialFacts(
            stage=stage, learning_rate=trial.rate, stands_for=stands_for, steps=steps, batch_size=self.plan.batch,
            loss=loss,
        ))  # fmt: skip
        self.callback(ProgressUpdate("Tuning", len(self.done), self.plan.trials, "trials"))

    def _rate(self, x: float) -> float:
        return self.default * 2 ** (x / 2)

    def _why(self, choice: RateChoice, ceiling: float) -> str:
        text = (
            f"{self._rate(choice.x) / self.default:.2g} times the default of {self.default:.3g}; the trials were best "
            f"near {self._rate(choice.best):.2g}, which counts the more the longer they are"
        )
        if choice.flat is not None:
            low, high = (self._rate(end) for end in choice.flat)
            text += f", and lose less than 1 % between {low:.2g} and {high:.2g}"
        if ceiling < RANGE[1]:
            text += f"; they diverge above {self._rate(ceiling):.2g}"
        return text


def ceiling_of(losses: Sequence[float], grown: Sequence[float]) -> float:
    """The last rate of a range, in half octaves, that did no harm. A step's loss is computed before its update, so what
    harms is the rate of the step before; single rows may have high losses by themselves, but these do not last."""
    calm, first = max(losses[:CALM], default=0.0), len(losses)
    while first > 0 and losses[first - 1] > RISES * calm:
        first -= 1
    return grown[-1] if first == len(grown) else grown[max(0, first - 2)]


def _unfit(trials: Trials, rows: int) -> str | None:
    """Why no trials are run, though the run is long enough for them."""
    if rows < LEAST_ROWS:
        return f"only {rows} rows could be set aside for trials"
    copy = sum(one.numel() * one.element_size() for one in trials.model.module.parameters())
    if trials.adapter.trial_copies * copy > available_memory():
        return f"each trial needs a copy of the model, and {available_memory() / 1e9:.1f} GB are free"
    return None


def _forecast(forecast: Foresight | None, plan: TrialPlan) -> float | None:
    duration = None if forecast is None else forecast.plan.duration
    return None if duration is None else duration.step.likely * plan.cost


def _announced(plan: TrialPlan, rows: int, from_training: bool, seconds: float | None) -> str:
    where = f"{rows} validation rows"
    if from_training:
        where = f"{rows} training rows that the trials set aside and the run learns from"
    time = "" if seconds is None else f", about {seconds:.0f} s"
    return (
        f"choosing the learning rate: {plan.trials} trials, as long as {plan.cost:.0f} of the {plan.run_steps} steps"
        f"{time}, measured on {where}"
    )
