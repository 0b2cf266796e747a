"""`--tune`: short trials on the run's own rows choose its learning rate before it begins.

    range     one trial whose rate grows at every step; rates at which its loss rises far are ruled out
    stages    successive halving over the others (halving.py)

The trials are measured on validation rows. Where there are none, they set training rows aside, which the run itself
learns from. Nothing that is written depends on them but the learning rate and the record of how it was chosen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rankwise.errors import is_out_of_memory
from rankwise.planning.tuning import TOO_COSTLY, Stage, TrialPlan
from rankwise.runs.manifest import TrialFacts, Tuning
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.memory import available_memory
from rankwise.training.halving import Choice, choose
from rankwise.training.preflight import Foresight, out_of_memory
from rankwise.training.trials import Trial, Trials, set_aside

CALM, RISES = 3, 1.5
"""First steps of the range, whose rates are low, and times their highest loss from which training has diverged."""
RANGE = (-4.0, 9.0)
"""Half octaves over which the rate grows in the range."""
LEARNED = 0.02
"""By what share the best trial must lower the loss; where it does not, as with a new head on few rows, which rate is
best in it says nothing of the run."""
LEAST_ROWS = 8
"""Rows apart without which no trial is worth anything."""


def tune(trials: Trials, foreseen: Foresight | None, callback: Callback) -> Tuning:
    setup, config, rows = trials.setup, trials.setup.training, trials.prepared.rows_in_pass
    default, row_tokens = float(config.learning_rate), trials.prepared.tokens_in_pass / rows
    whole = trials.experiment.adapter.trains_base
    plan = TrialPlan.of(setup.steps, config.rows_per_step(rows), row_tokens, whole=whole)
    prepared, from_training = set_aside(trials.prepared, plan.rows if plan else 0, config.seed)
    reason = trials.world.share(lambda: _unfit(trials, len(prepared.measured)) if plan else TOO_COSTLY)
    if plan is None or reason is not None:
        tuning = Tuning(learning_rate=default, default=default, why=f"the default, because {reason}")
        callback(StatusMessage("\n".join(tuning.lines())))
        return tuning
    search = Search(replace(trials, prepared=prepared), plan, default, callback)
    seconds = _forecast(foreseen, plan)
    callback(StatusMessage(_announced(plan, len(prepared.measured), from_training, seconds)))
    try:
        tuning = search.run()
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(foreseen, config.auto_batch) from None
        raise
    tuning = tuning.model_copy(update={
        "rows": len(prepared.measured), "rows_from": "training" if from_training else "validation",
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
        choice = choose(self.plan.stages, ceiling, self._measured, self.before)
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
            measured=False,
        )  # fmt: skip
        self.before = trial.loss
        self._add(0, trial, count)
        return ceiling_of(trial.losses, grown)

    def _measured(self, stage: Stage, x: float) -> float:
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

    def _why(self, choice: Choice, ceiling: float) -> str:
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
    if trials.experiment.adapter.trains_base:
        copy = sum(one.numel() * one.element_size() for one in trials.model.module.parameters())
        if 5 * copy > available_memory():  # a trial's weights, gradients and two averages, beside the run's weights
            return f"each trial needs a copy of the model, and {available_memory() / 1e9:.1f} GB are free"
    return None


def _forecast(foreseen: Foresight | None, plan: TrialPlan) -> float | None:
    duration = None if foreseen is None else foreseen.plan.duration
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
