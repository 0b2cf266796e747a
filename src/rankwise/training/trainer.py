"""The trainer: one loop for `train`, the probe, the benchmarks, the lab and the examples.

    for each step:   losses of all batches -> backward -> clip -> update        (step.py)
                     each hook's after_step

Everything that may vary is a value that comes in: what learns, which rows make which step, the settings, the backend
that computes losses, an anchor to the base, and hooks for what happens between steps (metrics log, validation,
checkpoints, report).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from rankwise.config.training import TrainingConfig
from rankwise.methods.trainable import Trainable
from rankwise.models.sharding import is_sharded, is_split
from rankwise.runs.records import Event, RankRecord, StepRecord, WarningMessage
from rankwise.system.signals import deferred, heed, requested
from rankwise.training.anchor import Anchor
from rankwise.training.auto_batch import StepBatches, halved
from rankwise.training.backend import Backend
from rankwise.training.finite import averages_of, check_finite
from rankwise.training.liveness import AFTER, Liveness
from rankwise.training.lockstep import filled_up
from rankwise.training.rng import preserve_rng_state, seed_process
from rankwise.training.schedules import rate_factor
from rankwise.training.state import TrainState, adamw
from rankwise.training.step import NoRoom, StepTotals, optimizer_step
from rankwise.training.world import ALONE, StoppedTogether, World

STEPS_BETWEEN_CHECKS = 100
"""Between two comparisons of the weights of several processes, beside those at the decisions about ranks."""


class Hook:
    """Something that happens between steps; by default nothing. Hooks are called in their order."""

    keeps = False
    """Whether it can keep what was learned so far, so that a request to stop waits for the end of a step."""

    def is_due(self, step: int, ahead: float) -> bool:
        """Whether a checkpoint is due after `step`, which ends in about `ahead` seconds; the first process is asked."""
        return False

    def keep(self, trainer: Trainer) -> None:
        """What was learned so far, since a checkpoint is due or the training is about to stop."""

    def before_first_step(self, trainer: Trainer) -> None:
        """Not called when a run is resumed."""

    def after_step(self, trainer: Trainer) -> None: ...

    def after_last_step(self, trainer: Trainer) -> None:
        """Before the trainable is finished: another step's weights may still be restored."""

    def after_training(self, trainer: Trainer) -> None:
        """With the weights that will be saved."""

    def on_event(self, event: Event) -> None: ...


class Trainer:
    """`config` names its steps and its learning rate (TrainingConfig.resolved)."""

    def __init__(
        self, trainable: Trainable, batches: StepBatches, config: TrainingConfig, backend: Backend,
        hooks: Sequence[Hook] = (), anchor: Anchor | None = None, world: World = ALONE,
    ) -> None:  # fmt: skip
        assert config.steps is not None and not isinstance(config.learning_rate, str), "the settings are resolved"
        steps, highest = config.steps, float(config.learning_rate)
        self.trainable, self.batches, self.config, self.backend, self.hooks = trainable, batches, config, backend, hooks
        self.anchor, self.world = anchor, world
        self.sharded = is_sharded(trainable.model)
        self.learned = True
        """Whether the result is another one than training began with."""
        self.state = TrainState(
            trainable=trainable,
            optimizer=adamw(trainable, config),
            rate=lambda step: highest * rate_factor(config, step, steps),
            steps=steps,
            clip=config.clip,
            device=trainable.parameters()[0].device,
        )
        self.seconds = 0.0
        """Of training so far, without what is done aside."""
        self._kept_step = 0
        """The step that this process went on from, or that it has kept since."""
        self._step_seconds = 0.0
        self._aside = 0.0
        self._training = False
        self._finite_at = -1
        self._liveness = Liveness()

    def run(self) -> Generator[StepRecord]:
        """Train from the state's step to the last one, and give each step's record when its hooks are done."""
        with self.backend.active():
            self._kept_step = self.state.step
            self._check_same()
            if self.state.step == 0:
                if self.trainable.initial_ranks is not None:
                    self.emit(self.trainable.initial_ranks)
                for hook in self.hooks:
                    hook.before_first_step(self)
                self._liveness.begin(self.state)
                torch.manual_seed(self.config.seed)
            yield from self._steps()
            self.world.check_stop()
            self._check_that_all_learned()
            for hook in self.hooks:
                hook.after_last_step(self)
            self.trainable.finish()
            rate = float(self.config.learning_rate)
            if self.learned and (warning := self.trainable.check_change(rate)) is not None:
                self.emit(WarningMessage(warning))
            check_finite(self.trainable.named_parameters(), self.state)
            for hook in self.hooks:
                hook.after_training(self)

    def emit(self, event: Event) -> None:
        for hook in self.hooks:
            hook.on_event(event)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do something that training must not feel: dropout is off, random generators are put back, no time counts."""
        began = time.perf_counter()
        self.trainable.train(False)
        try:
            with preserve_rng_state(self.state.device):
                yield
        finally:
            self.trainable.train(self._training)
            self._aside += time.perf_counter() - began

    def check_finite(self) -> None:
        """TrainingError where a weight or an average of the optimizer is not a number; looked at once a step."""
        if self._finite_at == self.state.step:
            return
        parameters = self.trainable.named_parameters()
        check_finite(parameters | averages_of(parameters, self.state), self.state)
        self._finite_at = self.state.step

    def _steps(self) -> Iterator[StepRecord]:
        self._training = True
        self.trainable.train()
        try:
            with deferred(any(hook.keeps for hook in self.hooks)):
                while not self.state.finished:
                    try:
                        record = self._timed_step()
                    except StoppedTogether:  # several processes stop together, before a step
                        self._keep()
                        raise
                    yield record
                    if self.state.step == AFTER:
                        self._check_that_all_learned()
                    if not self.world.is_several:
                        if requested():
                            self._keep()
                        heed()
        finally:
            self._training = False
            self.trainable.train(False)

    def _keep(self) -> None:
        """Where a checkpoint is due, and before a stop; a second request ends this too."""
        if self.state.step > self._kept_step and not self.state.finished:
            self._kept_step = self.state.step
            for hook in self.hooks:
                hook.keep(self)

    def _check_same(self) -> None:
        if self.world.is_several:
            learned = self.trainable.state_dict().tensors
            whole = {name: value for name, value in learned.items() if not is_split(value)}
            self.world.check_same(whole, f"after step {self.state.step}")

    def _check_that_all_learned(self) -> None:
        for warning in self._liveness.check(self.state):
            self.emit(warning)

    def _timed_step(self) -> StepRecord:
        began, aside = time.perf_counter(), self._aside
        record, ranks, due = self._step()
        self._step_seconds = time.perf_counter() - began
        self.emit(record)
        if ranks is not None:
            self.emit(ranks)
        if ranks is not None or self.state.finished or self.state.step % STEPS_BETWEEN_CHECKS == 0:
            self._check_same()
        for hook in self.hooks:
            hook.after_step(self)
        if due:
            self._keep()
        self.seconds += time.perf_counter() - began - (self._aside - aside)
        return record

    def _step(self) -> tuple[StepRecord, RankRecord | None, bool]:
        """And whether a checkpoint is due. Where memory runs out and `auto_batch` is set, begin anew with less."""
        state, tally, world = self.state, self.backend.tally, self.world
        given = self.batches.at(state.step)
        due = any(hook.is_due(state.step + 1, self._step_seconds) for hook in self.hooks)
        totals = StepTotals.of(given, world, due)
        given = totals.divided(given)
        if self.sharded:
            given = filled_up(given, world, self.backend)
        if world.is_several:
            seed_process(self.config.seed, state.step, world.rank)
        while True:
            if tally is not None:
                tally.clear()
            try:
                epoch = self.batches.epoch(state.step + 1)
                record, ranks = optimizer_step(state, given, self.backend.loss, epoch, self.anchor, world, totals)
                if tally is None:
                    return record, ranks, totals.checkpoint_due
                tally.sum_up(world.sums)
                return replace(record, **tally.means), ranks, totals.checkpoint_due
            except NoRoom:
                smaller = halved(self.batches, state.step) if self.config.auto_batch else None
                if smaller is None:
                    raise
                self.batches, message = smaller
                given = totals.divided(self.batches.at(state.step))
            self.emit(WarningMessage(message))
            state.optimizer.zero_grad(set_to_none=False)
