"""What a backend computes: a model, what learns of it, and how much of it at once.

How many blocks keep only their input and recompute their activations in the backward pass: memory for time.

    recomputed = 0                                              where all activations fit into free memory
               = ceil((needed - room) / saved by one block)     elsewhere

It is a function of the backend, the setting and the free memory, and changes no number. What a backend keeps is
measured on the model itself (forward/activation_memory.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.base.rotary_names import alike_up_to
from rankwise.config.images import ImagesConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError
from rankwise.forward.activation_memory import (
    NOWHERE,
    Room,
    SavedActivations,
    activation_checkpointing,
    blocks_in_order,
    eager_saved_activations,
    saved_activations,
)
from rankwise.forward.encoders import FusedEncoder, encoder_blocks, has_encoder_kernels, lowest_block_that_learns
from rankwise.forward.fused import blocks_of, has_kernels, lowest_that_learns
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.rows.encoded.batches import Arrange, Batch, Batches, Vary
from rankwise.rows.encoded.dealing import share_of
from rankwise.rows.preparation import Prepared
from rankwise.runs.records import Callback, WarningMessage, silent
from rankwise.system.memory import available_memory, is_limited
from rankwise.training.world import ONE_PROCESS, World

PREFIX_SHARE, SHARE_UNDER_LIMIT = 0.15, 0.03
"""The share of free memory that the cache of the blocks below the first trained one may take. A forecast does not count
it, and leaves less unplanned under a limit (planning/devices.py)."""


def prefix_room(free: int) -> int:
    """Bytes for that cache."""
    return int(free * (SHARE_UNDER_LIMIT if is_limited() else PREFIX_SHARE))


@dataclass(frozen=True)
class Presentation:
    """How rows are shown: several in one sequence, or images varied each time."""

    packing: bool = False
    images: ImagesConfig = field(default_factory=ImagesConfig)

    @property
    def is_varied(self) -> bool:
        """No row is seen twice."""
        return self.images.augmentation != "none"


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
        cls, trainable: Trainable, objective: Objective, config: TrainingConfig, prepared: Prepared,
        presentation: Presentation, callback: Callback,
    ) -> Workload:  # fmt: skip
        """Describe a run over prepared rows, before a checkpoint takes ranks away."""
        module, packing = trainable.model, presentation.packing
        longest, rows = prepared.longest, prepared.rows_in_pass
        largest = max(prepared.widest, min(config.max_batch_tokens, config.batch_size * prepared.widest))
        if packing and alike_up_to(module) < longest:
            callback(WarningMessage("rows are not packed: this model's rotary angles depend on the length of a row"))
            packing = False
        first = 0 if presentation.is_varied else _first_trained_block(module, config, rows, longest, objective)
        return cls(
            module, trainable, objective, longest=longest, largest=largest, first_trained_block=first, packing=packing,
            activation_checkpointing=config.activation_checkpointing, callback=callback,
        )  # fmt: skip

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


def batches_of(
    prepared: Prepared, config: TrainingConfig, arrange: Arrange, vary: Vary | None = None, world: World = ONE_PROCESS,
    first: int = 0,
) -> Batches:  # fmt: skip
    """The rows as a training shows them: with what is replayed among them, and every class equally often if it is to
    be. Of several processes each has its share of every step; `first` are tokens that the first computes beside it."""
    order, in_pass = prepared.order(config.seed), prepared.rows_in_pass
    batches = Batches.of(prepared.shown_rows, config, arrange, vary, order, in_pass)
    if not world.is_several:
        return batches
    return replace(batches, share=lambda rows: share_of(rows, world.rank, world.size, first))


BYTES_OF_LEARNING = 12
"""Bytes that training needs beside each trained number: for its gradient and AdamW's two averages."""
KEPT_SHARE = 0.7
"""The share of free memory that activations may take."""


def fused_blocks(work: Workload, free: int) -> int:
    """How many blocks the fused backend recomputes, from the first trained one on."""
    blocks = blocks_of(work.module) - work.first_trained_block
    return _count(work, blocks, free, lambda room: saved_activations(work.module, work.first_trained_block, room))


def encoder_blocks_recomputed(work: Workload, loss: Callable[[Batch], Tensor], free: int) -> int:
    """How many blocks of an encoder the fused backend recomputes, from the first trained one on."""
    lowest = work.first_trained_block
    blocks = len(encoder_blocks(work.module)) - lowest

    def saved(room: Room, recomputed: int = 0) -> SavedActivations:
        with FusedEncoder(work.module, loss, lowest=lowest, recomputed=recomputed).active():
            return _kept_by_eager(work, loss, room)

    return _count(work, blocks, free, saved, lambda: saved(NOWHERE, blocks))


def eager_blocks(work: Workload, loss: Callable[[Batch], Tensor]) -> list[nn.Module]:
    """The blocks that the eager backend recomputes, where gradients and the optimizer's averages may be most of the
    memory that is still to come."""
    blocks = trained_blocks(blocks_in_order(work.module))
    if work.activation_checkpointing != "auto" and work.activation_checkpointing and not blocks:
        raise ConfigError(
            [
                f"training.activation_checkpointing is {work.activation_checkpointing}, but rankwise finds no "
                f"blocks in {type(work.module).__name__} whose activations it could recompute. Leave it out, or lower "
                "training.max_batch_tokens."
            ]
        )
    if not blocks:
        return []

    def least() -> SavedActivations:
        with activation_checkpointing(blocks):
            return _kept_by_eager(work, loss, NOWHERE)

    parameters = work.trainable.parameters()
    learned = sum(parameter.numel() for parameter in parameters)
    free = free_on(next(work.module.parameters()).device) - BYTES_OF_LEARNING * learned
    return blocks[: _count(work, len(blocks), max(0, free), partial(_kept_by_eager, work, loss), least)]


def _kept_by_eager(work: Workload, loss: Callable[[Batch], Tensor], room: Room) -> SavedActivations:
    def batch_of(length: int) -> Batch:
        rows = work.objective.loss.random_rows(work.module, [length], torch.Generator().manual_seed(0))
        (batch,) = work.objective.loss.batches(rows, length)
        return batch

    return eager_saved_activations(work.module, loss, batch_of, work.objective.row_length, room)


def _count(
    work: Workload, blocks: int, free: int, most: Callable[[Room], SavedActivations],
    least: Callable[[], SavedActivations] = lambda: SavedActivations(0.0, 0.0),
) -> int:  # fmt: skip
    """`most` measures what all blocks keep, and `least` what is left of it if all are recomputed."""
    if work.activation_checkpointing != "auto":
        return min(work.activation_checkpointing, blocks)
    room = Room(work.largest, free * KEPT_SHARE)
    with work.with_dropout():
        needed = most(room).of(room.tokens)
        if needed <= room.free:
            return 0
        count = recomputed(needed, free, blocks, least().of(room.tokens))
    work.callback(WarningMessage(
        f"{count} of {blocks} blocks use activation checkpointing, because the activations of {work.largest:,} tokens "
        f"would need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. A lower training.max_batch_tokens needs "
        "less memory"
    ))  # fmt: skip
    return count


def recomputed(needed: float, free: float, blocks: int, least: float = 0.0) -> int:
    """How many blocks must recompute, where all of them keep so many bytes, and `least` if all recompute."""
    room = free * KEPT_SHARE
    return min(blocks, ceil((needed - room) / max(1.0, (needed - least) / blocks))) if needed > room else 0


def free_on(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory()


def trained_blocks(blocks: list[nn.Module]) -> list[nn.Module]:
    """From the first block on in which something learns."""
    first = next((at for at, block in enumerate(blocks) if any(one.requires_grad for one in block.parameters())), 0)
    return blocks[first:]
