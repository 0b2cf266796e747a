"""The trainer: one loop for `train`, the probe, the benchmarks, the lab and the examples.

    for each step:   losses of all batches -> backward -> clip -> update        (step.py)
                     each hook's after_step

Everything that may vary is a value that comes in: what learns, which rows make which step, the settings, the backend
that computes losses, an anchor to the base, and hooks for what happens between steps (metrics log, validation,
checkpoints, report).

When memory runs out, batches become smaller: a step is begun again with half as many tokens at once. What a step learns
from is a sum over all its rows, so how they are cut into batches changes no result (without dropout), and the rows of a
step stay the same. A sequence is never cut.

Whether everything that learns has moved is looked at once, after a few steps, and by gradients again at the end. A sum
over the bits of each tensor before the first step is compared with that after step AFTER. A layer that the model does
not call has no gradient; a learning rate below the rounding of a weight moves nothing, though gradients are there. What
stays may be right: a token that has not occurred, an expert that no token was sent to, a rank that was pruned. So it is
an error only where nothing moved at all in so many steps, which hours more would not change.

The learning rate is a pure function of progress. It rises linearly over the warm-up and then falls to zero linearly, by
a half cosine, or not at all. The rate that `auto` stands for falls with the width of the model: 2e-3 at width 576, half
of the best rate there on short runs of two tasks and far below what diverges (lab/adalora.md), and by the power 0.8 of
the width above it, which gives 4.2e-4 at 4,096, where the best rates of LoRA were found between 2e-4 and 5e-4, ten
times those of full fine-tuning (Biderman et al. 2024, Schulman et al. 2025).

Where the whole model learns it is a twentieth of that: 1e-4 at width 576 and 2.1e-5 at 4,096, where Alpaca and Vicuna
were trained with 2e-5. On four tasks, one short epoch each, the best rate was 2e-4 or 4e-4, a tenth or a twentieth of
LoRA's; 1e-4 was 0.001 to 0.03 nats behind it, or 0.13 where facts had to be learned, and forgot a seventh to two fifths
as much (lab/claims.md).

Classifiers of MiniLM, width 384, ended at chance at the rates of language models in three of six cases (LoRA at 2e-3,
AdaLoRA at 3e-3), and were best at 2e-4 to 1e-3 with adapters, 5e-5 to 1e-4 with all weights, and 0.064 to 0.25 with
the head alone; LoRA at 7e-4 was 0.16 worse with one seed of three on STS-B (lab/classification.md). `auto` is 1e-3,
4.1e-4, 8.3e-5 and 6.9e-4 there. LoRA on DINOv2-small, of the same width, learned CIFAR-10 best at 6e-4 of three rates
with 30 and 100 images of a class (lab/images.md), and at 8.2e-4 of seven in a short run (lab/tuning.md); `auto` is
5.8e-4.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from rankwise.base.split import is_sharded, is_split
from rankwise.config.training import TrainingConfig
from rankwise.errors import TrainingError, some
from rankwise.methods.trainable import Trainable
from rankwise.rows.encoded.batches import Batch, Batches
from rankwise.runs.manifest import Results
from rankwise.runs.metrics_log import History
from rankwise.runs.records import Event, RankRecord, StepRecord, WarningMessage
from rankwise.system.signals import deferred, raise_if_requested, requested
from rankwise.training.losses import Backend
from rankwise.training.state import TrainState, adamw, averages_of, check_finite, preserve_rng_state, seed_process
from rankwise.training.step import Anchoring, NoRoom, StepTotals, optimizer_step
from rankwise.training.world import ONE_PROCESS, StoppedTogether, World, bit_sums, filled_up


class StepBatches(Protocol):
    """Which batches make which step."""

    def at(self, step: int) -> list[Batch]: ...

    def epoch(self, step: int) -> float:
        """How often each row was seen after so many steps."""
        ...


def halved(batches: StepBatches, step: int) -> tuple[Batches, str] | None:
    """Batches whose largest one of this step is smaller, and a sentence about them; None where there are none."""
    if not isinstance(batches, Batches):
        return None
    before, tokens = _largest(batches.at(step)), batches.max_batch_tokens
    while tokens > 1:
        tokens //= 2
        smaller = replace(batches, max_batch_tokens=tokens)
        if (after := _largest(smaller.at(step))) < before:
            return smaller, (
                f"out of memory with micro-batches of {before:,} tokens; continuing with "
                f"training.max_batch_tokens={tokens}, which makes {after:,} in this step. Each step still has the "
                "same rows"
            )
    return None


def _largest(batches: Sequence[Batch]) -> int:
    return max(batch.size for batch in batches)


SHAPES = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
    "constant": lambda left: 1.0,
}


def rate_factor(config: TrainingConfig, step: int, steps: int) -> float:
    """What part of the highest rate step `step` of `steps` (counted from 0) is made with."""
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return SHAPES[config.schedule](1 - (step - warm) / max(1, steps - warm))


AFTER = 10
"""Steps. The first ones move only one of two factors, and at a fraction of the learning rate."""
EXPERT = re.compile(r"\.experts\.[0-9]+\.")


@dataclass
class Liveness:
    """`before` are the sums of a training that this process began."""

    before: Mapping[str, int] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    """What has been named."""

    def begin(self, state: TrainState) -> None:
        self.before = bit_sums(state.trainable.named_parameters())

    def check(self, state: TrainState) -> list[WarningMessage]:
        """TrainingError where nothing has learned; else a sentence for what has not, unless it was named before."""
        trainable, warnings = state.trainable, list[WarningMessage]()
        idle = tuple(trainable.without_gradient(state.optimizer))
        if len(idle) >= len(trainable.names):
            raise TrainingError(
                f"none of the {len(trainable.names)} {trainable.unit} received a gradient in {state.step} steps, so "
                "nothing was learned."
            )
        if idle and idle != self.idle:
            so_far = "never received a gradient" if state.finished else f"got no gradient in {state.step} steps"
            warnings.append(
                WarningMessage(f"{len(idle)} of {len(trainable.names)} {trainable.unit} {so_far}: {some(idle, 3)}")
            )
        self.idle = idle
        return warnings + self._unmoved(state)

    def _unmoved(self, state: TrainState) -> list[WarningMessage]:
        """Warn, once, of tensors that get gradients but have not changed. TrainingError where none has changed in
        `AFTER` steps or more."""
        before, self.before = self.before, {}
        now = bit_sums({name: one for name, one in state.trainable.named_parameters().items() if name in before})
        same = [name for name, value in now.items() if value == before[name]]
        rate = max((state.rate(step) for step in range(state.step)), default=0.0)
        if rate == 0:
            return []
        if now and len(same) == len(now):
            problem = (
                f"none of the {len(now)} tensors that learn changed in {state.step} steps, so nothing was learned: the "
                f"updates are smaller than the weights' rounding. Raise training.learning_rate ({rate:.3g})."
            )
            if state.step >= AFTER:
                raise TrainingError(problem)
            return [WarningMessage(problem)]
        named = [name for name in same if not (EXPERT.search(name) or name.startswith(self.idle))]
        if not named or state.step == 1:  # where one factor of a product begins at 0, the other gets no gradient yet
            return []
        return [
            WarningMessage(f"{len(named)} of {len(now)} tensors did not change in {state.step} steps: {some(named, 3)}")
        ]


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

    def take_up(self, history: History) -> None:
        """What is behind a run that goes on, before its next step."""

    def recorded(self, results: Results) -> Results:
        """With what this came to."""
        return results


class Trainer:
    """`config` names its steps and its learning rate (TrainingConfig.resolved)."""

    def __init__(
        self, trainable: Trainable, batches: StepBatches, config: TrainingConfig, backend: Backend,
        hooks: Sequence[Hook] = (), anchor: Anchoring | None = None, world: World = ONE_PROCESS,
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
        """Seconds of training so far, without what is done aside."""
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
                        raise_if_requested()
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
        """Do one optimizer step, and return whether a checkpoint is due too. Where memory runs out and `auto_batch` is
        set, begin the step again with smaller batches."""
        state, tally, world = self.state, self.backend.tally, self.world
        given = self.batches.at(state.step)
        due = any(hook.is_due(state.step + 1, self._step_seconds) for hook in self.hooks)
        totals = StepTotals.of(given, world, due)
        given = totals.divided(given)
        if self.sharded:
            given = filled_up(given, world, self.backend.layout)
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
