"""Hooks of a run besides validation: write down every record, save checkpoints, report to whoever waits, and end the
training with a result where somebody asks for it: the step that it is at becomes its last.

What becomes of a run that diverged: it goes back to a checkpoint, or to the beginning, with half the learning rate.

Going back is resuming, from an earlier checkpoint than the newest. How often it happened is in the manifest, so that a
run which is killed at any moment afterwards ends with the same bytes.

Divergence: a loss that stays far above its own past, seen from the records of the steps alone.

    past        the losses of all steps but the last 20
    start       the largest of the losses that the first 16 rows had, and of the validation before the first step
    reference   max(start, 90 % quantile of the past)
    untrained   max(log of the number of tokens, factor * the loss before any step)
    diverged    at least 8 of the last 10 losses > min(factor * reference, untrained) + 1

A loss of tokens above the log of their number is worse than that of a model that knows nothing. This bound holds where
the first steps have done the harm, so that no past tells what is usual. The factor is 3 for losses of tokens and pairs,
and 10 where a head is trained, which may overshoot for hundreds of steps and still learn. A spike of fewer steps is
none, as the loss comes back by itself. The gradient norm does not decide: it grew to 50 times its median in trainings
that ended well, and AdamW's step does not depend on its size.

OLMo-core leaves out a step that is more than six standard deviations above the last 128, Lightning reports a loss above
twice the mean of the last ten, and PaLM went back about 100 steps by hand and left out some batches (Chowdhery et al.
2022, 5.1). These treat a spike; none of them ends a run that does not come back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError
from rankwise.runs.directory import BY_REQUEST, ClaimedRun, RunDirectory, forget_end_request, is_asked_to_end
from rankwise.runs.manifest import BackOff, Manifest
from rankwise.runs.metrics_log import History, MetricsLog
from rankwise.runs.own_files import read_experiment
from rankwise.runs.records import Callback, Event, LossRecord, Record, StatusMessage, StepRecord, WarningMessage
from rankwise.runs.resumable import METRICS
from rankwise.training.checkpoints import save
from rankwise.training.state import Diverged, TrainState
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.validation import Validation
from rankwise.training.world import World


@dataclass(frozen=True)
class EndByRequest(Hook):
    """Comes before the validation, which then measures the last step. In a run of one process."""

    run: RunDirectory
    validation: Validation

    def after_step(self, trainer: Trainer) -> None:
        state = trainer.state
        if state.finished or not is_asked_to_end(self.run):
            return
        forget_end_request(self.run)
        state.ended = True
        self.validation.stopped_early = f"{BY_REQUEST} after step {state.step} of {state.steps}"
        trainer.emit(StatusMessage(f"ended {self.validation.stopped_early}"))
        if (ranks := trainer.trainable.end_early(state.step - 1, state.optimizer)) is not None:
            trainer.emit(ranks)
            trainer.emit(WarningMessage(
                f"the run was ended after step {state.step}, before its ranks were decided: the adapter has "
                f"{sum(ranks.ranks.values()):,} ranks, more than its budget"
            ))  # fmt: skip


SHARE, MOST_SHARE = 0.01, 0.05
"""The share of a run's time that checkpoints take: as a rule, and at most, where they are written slowly."""
OFTEN = 0.2
"""The shortest time between two checkpoints, as a share of the longest, however quickly they are written."""


@dataclass(frozen=True)
class LogMetrics(Hook):
    log: MetricsLog

    def on_event(self, event: Event) -> None:
        if isinstance(event, Record):
            self.log.append(event.as_row())


@dataclass
class CheckpointPace:
    """When checkpoints are written: each `interval` steps, and so that at most `longest` seconds of work are lost: as
    often as SHARE and OFTEN allow, and never so often that MOST_SHARE of the time goes into them."""

    interval: int | None
    longest: float | None
    took: float
    """Seconds of the last checkpoint; of the first, what its size lets expect."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._since = self.clock()

    def is_due(self, step: int, ahead: float = 0.0) -> bool:
        """After `step`, which ends in `ahead` seconds."""
        if self.interval is not None and step % self.interval == 0:
            return True
        if self.longest is None:
            return False
        wanted = min(self.longest, max(OFTEN * self.longest, self.took / SHARE))
        return self.clock() + ahead - self._since >= max(wanted, self.took / MOST_SHARE)

    def has_written(self, since: float) -> None:
        self._since = self.clock()
        self.took = self._since - since


@dataclass(frozen=True)
class SaveCheckpoints(Hook):
    """Saves a checkpoint when the pace says so and before a stop, but not after the last step. The newest `count` are
    kept, so that a damaged one is no loss, and two more to which the run can go back if it diverges (`ways_back`).

    None is saved while the loss is far above its past. After each step the lock is checked, so that nothing is written
    over the work of another process.
    """

    run: ClaimedRun
    pace: CheckpointPace
    count: int
    log: MetricsLog
    watch: LossWatch
    backs_off: bool = False
    keeps = True

    def is_due(self, step: int, ahead: float) -> bool:
        return self.pace.is_due(step, ahead)

    def after_step(self, trainer: Trainer) -> None:
        self.run.check_lock()

    def keep(self, trainer: Trainer) -> None:
        if self.watch.far_above:
            return
        state, began = trainer.state, self.pace.clock()
        trainer.check_finite()
        self.log.sync()
        for moved in self.run.checkpoints.make_way(state.step):
            trainer.emit(StatusMessage(moved))
        save(state, self.run.checkpoints.path(state.step), self.run.files | {METRICS: self.run.metrics.read_bytes()})
        saved = self.run.steps_saved
        earlier = ways_back(by_steps(saved, self.pace.interval), state.step) if self.backs_off else []
        self.run.checkpoints.forget(but=[*earlier, *saved[-self.count :]])
        self.pace.has_written(since=began)


@dataclass(frozen=True)
class FollowCheckpoints(Hook):
    """In a process that does not write: looks where SaveCheckpoints of the first one does, so that both end at the same
    step, and gives its part of each checkpoint where what learns is split."""

    watch: LossWatch
    gives: bool
    keeps = True

    def keep(self, trainer: Trainer) -> None:
        if not self.watch.far_above:
            trainer.check_finite()
            if self.gives:
                save(trainer.state, None)


@dataclass(frozen=True)
class ReportHook(Hook):
    callback: Callback

    def on_event(self, event: Event) -> None:
        self.callback(event)


WINDOW, MOST = 10, 8
"""Training has diverged where the losses of `MOST` of the last `WINDOW` steps are far above the reference."""
RECENT = 20
"""The last steps, which are no past yet: the loss rises before it is far above."""
ENOUGH_ROWS = 16
"""So many tell what the loss was at first, where nothing was validated."""
ABOVE = 1.0


@dataclass
class LossWatch(Hook):
    """`rows` are those of a step, `rate` is the learning rate to try instead, for the message, `tokens` is how many
    there are to choose from, where a token is predicted, and `steps` are all records so far."""

    factor: float
    rows: int
    rate: float
    tokens: int | None = None
    steps: list[StepRecord] = field(default_factory=list)
    before: float | None = None
    """The validation loss before the first step, where one was measured."""

    def take_up(self, history: History) -> None:
        self.steps = list(history.steps)
        for record in history.losses:
            self._note(record)

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepRecord):
            self.steps.append(event)
        self._note(event)

    def after_step(self, trainer: Trainer) -> None:
        """Diverged where the last steps say so."""
        above = self.far_above
        if len(above) < MOST:
            return
        last = self.steps[-1]
        raise Diverged(
            f"after step {last.step} of {last.steps}, training has diverged: {len(above)} of the last {WINDOW} losses "
            f"are above {self.limit:.3g}, the last is {last.loss:.4g}, {self._earlier} "
            f"(learning rate {last.learning_rate:.2g}, gradient norm {last.gradient_norm:.3g}). "
            f"Try --learning-rate {self.rate:.1g} with --restart.",
            begun=above[0].step,
        )

    @property
    def far_above(self) -> list[StepRecord]:
        """The records of the last `WINDOW` steps whose loss is far above the reference."""
        recent = self.steps[-WINDOW:]
        if max(record.loss for record in recent) <= min(self.factor * self._start, self._untrained) + ABOVE:
            return []  # nearly always, so that the past need not be sorted
        limit = self.limit
        return [record for record in recent if record.loss > limit]

    @property
    def limit(self) -> float:
        return min(self.factor * self.reference, self._untrained) + ABOVE

    @property
    def reference(self) -> float:
        """What the loss was before, but for spikes."""
        past = sorted(record.loss for record in self.steps[:-RECENT])
        return max(self._start, past[int(0.9 * (len(past) - 1))] if past else 0.0)

    @property
    def _start(self) -> float:
        first = math.ceil(ENOUGH_ROWS / self.rows) if self.before is None else 1
        return max(self.before or 0.0, *(record.loss for record in self.steps[:first]))

    @property
    def _untrained(self) -> float:
        if self.tokens is None:
            return math.inf
        return max(math.log(self.tokens), self.factor * self._first)

    @property
    def _first(self) -> float:
        """The loss before any update."""
        return self.steps[0].loss if self.before is None else self.before

    @property
    def _earlier(self) -> str:
        if self.limit == self.factor * self.reference + ABOVE:
            return f"earlier ones were at most {self.reference:.4g}"
        if self._untrained > self.factor * self._first:
            return f"and a model that knows nothing has a loss of {self._untrained:.3g}"
        return f"and it was {self._first:.4g} before training"

    def _note(self, record: object) -> None:
        if isinstance(record, LossRecord) and record.step == 0:
            self.before = record.loss


MOST_BACK_OFFS = 3
RATE_AFTER = 0.5
"""The learning rate after a run went back, as a share of the one before."""


def last_before(saved: Sequence[int], step: int) -> int:
    """The newest of these steps that was well before `step`; 0 for the beginning."""
    return max((one for one in saved if one <= step - RECENT), default=0)


def ways_back(saved: Sequence[int], step: int) -> list[int]:
    """The step to go back to from `step`, and the one that takes its place later."""
    first = last_before(saved, step)
    return [first, *(one for one in saved if one > first)][:2]


def by_steps(saved: Sequence[int], interval: int | None) -> list[int]:
    """The saved steps at multiples of `interval`, or all without one. Checkpoints that a clock or a stop caused are
    left out, so that a run goes back to the same step each time."""
    return [step for step in saved if interval is None or step % interval == 0]


def back_off(run: RunDirectory, config: TrainingConfig, error: Diverged) -> tuple[BackOff, ...]:
    """Let a run that has diverged go back to an earlier step: record this in its manifest, and return all its
    back-offs, the new one last; none where it is to stop."""
    if config.on_divergence == "stop":
        return ()
    saved = run.steps_saved
    try:
        manifest = run.manifest()
        begun_with = read_experiment(run.folder).training.on_divergence
        if saved and begun_with == "back-off":
            saved = by_steps(saved, config.checkpoint_interval(run.checkpoints.facts(saved[0])["steps"]))
    except RunError:
        return ()
    if len(manifest.back_offs) >= MOST_BACK_OFFS:
        return ()
    rate = manifest.learning_rate * RATE_AFTER ** (len(manifest.back_offs) + 1)
    to = last_before(saved, error.begun)
    every = (*manifest.back_offs, BackOff(begun=error.begun, to=to, learning_rate=rate))
    run.write_manifest(manifest.model_copy(update={"back_offs": every}))
    run.checkpoints.forget(but=[step for step in run.steps_saved if step <= to])
    return every


def back_off_together(world: World, run: RunDirectory, config: TrainingConfig, error: Diverged) -> tuple[BackOff, ...]:
    """Call `back_off` in the first process alone, for all processes, which have all seen the divergence."""
    every = world.share(lambda: [one.model_dump() for one in back_off(run, config, error)])
    return tuple(BackOff(**one) for one in every)


def with_ways_on(error: Diverged, run: RunDirectory, config: TrainingConfig, earlier: Sequence[BackOff]) -> Diverged:
    """Add to the error's message what to do about the divergence, or what was already done."""
    to = last_before(run.steps_saved, error.begun)
    where, how = f"step {to}" if to else "the beginning", "--resume" if run.steps_saved else "--restart"
    if earlier:
        way = (
            f"It went back {len(earlier)} times, the last time with the learning rate {earlier[-1].learning_rate:.2g}."
        )
    elif config.on_divergence == "stop":
        way = f"Or {how} with --set training.on_divergence=back-off: it goes on from {where} with half the rate."
    else:
        return error
    return Diverged(f"{error} {way}", error.begun)


def slowed(state: TrainState, manifest: Manifest) -> None:
    """Set the learning rate of a run that went back."""
    share, rate = RATE_AFTER ** len(manifest.back_offs), state.rate
    if manifest.back_offs:
        state.rate = lambda step: share * rate(step)


def warning_of(back_off: BackOff) -> WarningMessage:
    where = f"step {back_off.to}" if back_off.to else "the beginning"
    return WarningMessage(
        f"training diverged from step {back_off.begun} on and went back to {where}, with the learning rate "
        f"{back_off.learning_rate:.2g} from there (training.on_divergence)"
    )
