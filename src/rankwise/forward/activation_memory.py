"""Memory of saved activations: what a forward pass keeps for its backward pass, counted on the model itself.

Activation checkpointing, for models that run on their own code, keeps less: a block saves its input and is recomputed.

    memory for n checkpointed blocks: their inputs, and all activations of one block;  time: one more forward pass of
    them

Results do not change, even with dropout. Blocks are recognised by transformers' GradientCheckpointingLayer. The fused
backend has its own checkpointing (forward/fused.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.base.split import is_split
from rankwise.forward.fused import FusedLoss, probe
from rankwise.kernels.quantized.tensor import is_quantized
from rankwise.rows.encoded.batches import Batch

SMALL, LARGE = (40, 24), (150, 106)
"""Lengths of two sample batches; their difference separates the memory per token from the constant part."""

ROWS = 3
"""Rows of the larger batch, where all rows have the same length."""


@dataclass(frozen=True)
class SavedActivations:
    """Bytes of saved activations: a constant part, such as factors cast to the dtype of the model, and a part per
    token."""

    constant: float
    per_token: float

    def of(self, tokens: int) -> float:
        return self.constant + self.per_token * tokens


def saved_bytes(loss_of: Callable[[Batch], Tensor], batch: Batch, module: nn.Module) -> int:
    """Sum the bytes of the distinct storages that the backward pass needs and that did not exist before the call. The
    graph is dropped at once: an output that its own node refers to would keep it, and the model, alive for ever."""
    parameters = [one for one in module.parameters() if not is_split(one)]  # what is gathered is let go of again
    there = [*parameters, *module.buffers(), *batch.inputs.values(), batch.targets]
    known = {value.untyped_storage().data_ptr() for value in there if not is_quantized(value)}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(value: Tensor) -> None:
        if is_quantized(value):  # a weight: what it is unpacked to is dropped again
            return
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage  # kept alive, so that its address is not reused

    with torch.autograd.graph.saved_tensors_hooks(save, _never):
        loss_of(batch)
    return sum(storage.nbytes() for storage in saved.values())


def _never(_: None) -> Tensor:
    raise AssertionError("counting runs no backward pass")


@dataclass(frozen=True)
class Room:
    """Free bytes, for activations of so many tokens."""

    tokens: int
    free: float


NOWHERE = Room(0, 0.0)


def saved_activations(module: nn.Module, lowest: int = 0, room: Room = NOWHERE) -> SavedActivations:
    """Measure the fused backend on the blocks from `lowest` on, with a loss on every token. Where even the most that a
    small batch allows for leaves room, it is not measured further."""
    batches = (probe(module, lengths, torch.Generator().manual_seed(0)) for lengths in (SMALL, LARGE))
    return _line(FusedLoss(module, lowest=lowest), batches, module, room)


def eager_saved_activations(
    module: nn.Module, loss_of: Callable[[Batch], Tensor], batch_of: Callable[[int], Batch], row_length: int | None,
    room: Room = NOWHERE,
) -> SavedActivations:  # fmt: skip
    """By the model's own code; `batch_of` makes a batch of so many tokens: one row with a loss for each or, where every
    row has `row_length` tokens, several rows."""
    device = next(module.parameters()).device
    lengths = _lengths(module) if row_length is None else (row_length, ROWS * row_length)
    return _line(loss_of, (batch_of(length).to(device) for length in lengths), module, room)


def _lengths(module: nn.Module) -> tuple[int, int]:
    """A short and a long row, within the positions that the model has."""
    config = getattr(module, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or LARGE[0]
    large = min(LARGE[0], max(2, longest - 2))  # RoBERTa's first two positions are no token's
    return min(SMALL[0], large // 2), large


def _line(
    loss_of: Callable[[Batch], Tensor], batches: Iterable[Batch], module: nn.Module, room: Room
) -> SavedActivations:
    """Fit the constant and the part per token to two batch sizes. All that the small one keeps is at least either."""
    sizes = ((batch.size, saved_bytes(loss_of, batch, module)) for batch in batches)
    small, few = next(sizes)
    if (most := SavedActivations(few, few / small)).of(room.tokens) <= room.free:
        return most
    large, many = next(sizes)
    per_token = (many - few) / (large - small)
    return SavedActivations(few - per_token * small, per_token)


def blocks_in_order(module: nn.Module) -> list[nn.Module]:
    """List the blocks that can be checkpointed, in the order of the forward pass; empty if the model has none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


@contextmanager
def activation_checkpointing(blocks: list[nn.Module]) -> Iterator[None]:
    """Recompute these blocks in the backward pass instead of saving their activations."""
    for block in blocks:
        assert "forward" not in vars(block), "another patch has replaced its forward"
        block.forward = _checkpointed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def checkpointed_forward(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return checkpointed_forward
