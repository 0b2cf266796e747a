"""What a backend computes: a model, what learns of it, and how much of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from rankwise.config.training import TrainingConfig
from rankwise.data.preparation import Prepared
from rankwise.forward.encoders import has_encoder_kernels, lowest_block_that_learns
from rankwise.forward.fused import has_kernels, lowest_that_learns
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.runs.records import Callback, silent
from rankwise.system.memory import is_limited

PREFIX_SHARE, SHARE_UNDER_LIMIT = 0.15, 0.03
"""The share of free memory that the cache of the blocks below the first trained one may take. A forecast does not count
it, and leaves less unplanned under a limit (planning/devices.py)."""


def prefix_room(free: int) -> int:
    """Bytes for that cache."""
    return int(free * (SHARE_UNDER_LIMIT if is_limited() else PREFIX_SHARE))


@dataclass(frozen=True)
class Workload:
    module: nn.Module
    trainable: Trainable
    objective: Objective
    longest: int = 1
    """Tokens of the longest row."""
    largest: int = 1
    """Tokens that are computed at once, at most."""
    first_trained_block: int = 0
    """Blocks below it get no gradient."""
    packing: bool = False
    activation_checkpointing: int | Literal["auto"] = 0
    callback: Callback = silent

    @classmethod
    def of(
        cls, module: nn.Module, trainable: Trainable, objective: Objective, config: TrainingConfig, prepared: Prepared,
        packing: bool, callback: Callback, *, varied: bool = False,
    ) -> Workload:  # fmt: skip
        """Describe a run over prepared rows, before a checkpoint takes ranks away. `varied`: no row is seen twice."""
        longest, rows = prepared.longest, prepared.rows_in_pass
        largest = max(prepared.widest, min(config.max_batch_tokens, config.batch_size * prepared.widest))
        first = 0 if varied else _first_trained_block(module, config, rows, longest, objective)
        return cls(
            module, trainable, objective, longest, largest, first, packing, config.activation_checkpointing, callback
        )

    @property
    def predicts_tokens(self) -> bool:
        """The kernels of decoders end in the loss of predicted tokens."""
        return self.objective.targets is None

    @contextmanager
    def with_dropout(self) -> Iterator[None]:
        """As in training, and without a trace in the random numbers of the run."""
        with torch.random.fork_rng(devices=[]):
            self.trainable.train()
            try:
                yield
            finally:
                self.trainable.train(False)


def _first_trained_block(
    module: nn.Module, config: TrainingConfig, rows: int, longest: int, objective: Objective
) -> int:
    """The lowest block that learns, where rows come again and what lies below it is worth caching."""
    if config.total_steps(rows) * config.rows_per_step(rows) <= rows:
        return 0
    if objective.row_length is not None:
        return lowest_block_that_learns(module) if has_encoder_kernels(module) else 0
    return lowest_that_learns(module) if has_kernels(module, longest) else 0
