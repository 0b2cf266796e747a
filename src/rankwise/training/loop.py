"""Train to the last step. Whatever may vary comes in as an argument; nothing is looked up by name."""

from __future__ import annotations

from collections.abc import Callable

from rankwise.runs.records import Callback, RankRecord, StepRecord
from rankwise.system.signals import heed
from rankwise.training.auto_batch import Portions
from rankwise.training.losses import Loss
from rankwise.training.state import TrainState
from rankwise.training.step import NoRoom, optimizer_step


def train(
    state: TrainState,
    portions: Portions,
    *,
    loss_of: Loss,
    callback: Callback,
    after_step: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    while not state.finished:
        record, plan = _step(state, portions, loss_of)
        callback(record)
        if plan is not None:
            callback(plan)
        after_step(state)
        heed()
    return state


def _step(state: TrainState, portions: Portions, loss_of: Loss) -> tuple[StepRecord, RankRecord | None]:
    while (done := _attempt(state, portions, loss_of)) is None:
        state.optimizer.zero_grad(set_to_none=False)
    return done


def _attempt(state: TrainState, portions: Portions, loss_of: Loss) -> tuple[StepRecord, RankRecord | None] | None:
    """None where memory ran out and less is taken at once from now on."""
    try:
        return optimizer_step(state, portions.at(state.step), loss_of, portions.epoch(state.step + 1))
    except NoRoom:
        if not portions.halve(state.step):
            raise
    return None
