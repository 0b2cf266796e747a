"""Train to the last step. Whatever may vary comes in as an argument; nothing is looked up by name."""

from __future__ import annotations

from collections.abc import Callable

from rankwise.data.batches import Batches
from rankwise.run.records import Announce
from rankwise.training.losses import Loss
from rankwise.training.state import TrainState
from rankwise.training.step import optimizer_step


def train(
    state: TrainState,
    batches: Batches,
    *,
    loss_of: Loss,
    announce: Announce,
    after_step: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    while not state.finished:
        record, plan = optimizer_step(state, batches.at(state.step), loss_of, batches.epoch(state.step + 1))
        announce(record)
        if plan is not None:
            announce(plan)
        after_step(state)
    return state
