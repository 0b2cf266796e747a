"""Train to the last step. Whatever may vary comes in as an argument; nothing is looked up by name."""

from __future__ import annotations

from rankwise.data.batches import Batches
from rankwise.run.records import Announce
from rankwise.training.losses import Forward
from rankwise.training.state import TrainState
from rankwise.training.step import optimizer_step


def train(state: TrainState, batches: Batches, *, forward: Forward, announce: Announce) -> TrainState:
    while not state.finished:
        record = optimizer_step(state, batches.at(state.step), forward, batches.epoch(state.step + 1))
        announce(record)
    return state
