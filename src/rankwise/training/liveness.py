"""Whether everything that learns has moved, looked at once, after a few steps, and by gradients again at the end.

A sum over the bits of each tensor before the first step is compared with that after step AFTER. A layer that the model
does not call has no gradient; a learning rate below the rounding of a weight moves nothing, though gradients are there.
What stays may be right: a token that has not occurred, an expert that no token was sent to, a rank that was pruned. So
it is an error only where nothing moved at all in so many steps, which hours more would not change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rankwise.errors import TrainingError, some
from rankwise.runs.records import WarningMessage
from rankwise.training.bit_sums import bit_sums
from rankwise.training.state import TrainState

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
        """Of what has gradients; looked at once."""
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
