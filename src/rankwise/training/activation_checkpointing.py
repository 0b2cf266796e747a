"""How many blocks keep only their input and recompute their activations in the backward pass: memory for time.

    recomputed = 0                                              where all activations fit into free memory
               = ceil((needed - room) / saved by one block)     elsewhere

It is a function of the backend, the setting and the free memory, and changes no number. What a backend keeps is
measured on the model itself (forward/activation_memory.py).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.errors import ConfigError
from rankwise.forward.activation_memory import SavedActivations, eager_saved_activations, saved_activations
from rankwise.forward.checkpointing import activation_checkpointing, blocks_in_order
from rankwise.forward.encoders import FusedEncoder, encoder_blocks
from rankwise.forward.fused import blocks_of
from rankwise.runs.records import WarningMessage
from rankwise.system.memory import available_memory
from rankwise.training.workload import Workload

BYTES_OF_LEARNING = 12
"""Of each number that learns: a gradient and AdamW's two averages."""
KEPT_SHARE = 0.7
"""Of free memory, what activations may take."""


def fused_blocks(work: Workload, free: int) -> int:
    """How many blocks the fused backend recomputes, from the first trained one on."""
    blocks = blocks_of(work.module) - work.first_trained_block
    return _count(work, blocks, free, lambda: (saved_activations(work.module, work.first_trained_block), 0.0))


def encoder_blocks_recomputed(work: Workload, loss: Callable[[Batch], Tensor], free: int) -> int:
    """How many blocks of an encoder the fused backend recomputes, from the first trained one on."""
    lowest = work.first_trained_block
    blocks = len(encoder_blocks(work.module)) - lowest

    def saved(recomputed: int) -> SavedActivations:
        with FusedEncoder(work.module, loss, lowest=lowest, recomputed=recomputed).active():
            return _kept_by_eager(work, loss)

    return _count(work, blocks, free, lambda: (saved(0), saved(blocks).of(work.largest)))


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

    def measured() -> tuple[SavedActivations, float]:
        with activation_checkpointing(blocks):
            least = _kept_by_eager(work, loss).of(work.largest)
        return _kept_by_eager(work, loss), least

    parameters = work.trainable.parameters()
    learned = sum(parameter.numel() for parameter in parameters)
    free = free_on(next(work.module.parameters()).device) - BYTES_OF_LEARNING * learned
    return blocks[: _count(work, len(blocks), max(0, free), measured)]


def _kept_by_eager(work: Workload, loss: Callable[[Batch], Tensor]) -> SavedActivations:
    def batch_of(length: int) -> Batch:
        rows = work.objective.random_rows(work.module, [length], torch.Generator().manual_seed(0))
        (batch,) = work.objective.batches(rows, length)
        return batch

    return eager_saved_activations(work.module, loss, batch_of, work.objective.row_length)


def _count(work: Workload, blocks: int, free: int, measured: Callable[[], tuple[SavedActivations, float]]) -> int:
    """`measured` gives what all blocks keep, and what is left of it if all are recomputed."""
    if work.activation_checkpointing != "auto":
        return min(work.activation_checkpointing, blocks)
    with work.with_dropout():
        kept, least = measured()
    needed = kept.of(work.largest)
    count = recomputed(needed, free, blocks, least)
    if count:
        work.callback(WarningMessage(
            f"{count} of {blocks} blocks use activation checkpointing, because the activations of {work.largest:,} "
            f"tokens would need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. A lower "
            "training.max_batch_tokens needs less memory"
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
