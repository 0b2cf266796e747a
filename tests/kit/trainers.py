"""The trainer over a state and a loss that a test makes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from rankwise.config.training import TrainingConfig
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Callback, StepRecord, silent
from rankwise.training.hooks import ReportHook
from rankwise.training.state import TrainState
from rankwise.training.trainer import Hook, StepBatches, Trainer


@dataclass(frozen=True)
class GivenLoss:
    """A backend that computes losses by a function."""

    loss: Callable[[Batch], Tensor]
    name = "eager"
    tally = None

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        raise AssertionError("the test makes its own batches")

    @contextmanager
    def active(self) -> Iterator[None]:
        yield


def random_rows(count: int, seed: int = 0) -> list[Tokens]:
    """Rows of unequal length with unequal shares of supervised tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, 40, (1,), generator=generator))
        given = int(torch.randint(1, length - 1, (1,), generator=generator))
        ids = torch.randint(0, 96, (length,), generator=generator).tolist()
        rows.append(Tokens(tuple(ids), tuple(place >= given for place in range(length))))
    return rows


def train(
    state: TrainState, batches: StepBatches, *, loss_of: Callable[[Batch], Tensor], callback: Callback = silent,
    auto_batch: bool = False, hooks: Sequence[Hook] = (),
) -> list[StepRecord]:  # fmt: skip
    """Every step that the state has left, and nothing of what comes after the last."""
    config = TrainingConfig(steps=state.steps, learning_rate=1e-3, auto_batch=auto_batch)
    trainer = Trainer(state.trainable, batches, config, GivenLoss(loss_of), [ReportHook(callback), *hooks])
    trainer.state = state
    with closing(trainer.run()) as records:
        return list(islice(records, state.steps - state.step))
