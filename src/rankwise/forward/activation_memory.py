"""What a forward pass makes and keeps for its backward pass, counted on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.forward.fused import FastLoss, probe

SMALL, LARGE = (40, 24), (150, 106)
"""Lengths of the documents that tell what a token keeps from what a call keeps."""


@dataclass(frozen=True)
class Kept:
    """Bytes: of any call, as the factors in the number format of the model are, and of each token."""

    constant: float
    per_token: float

    def of(self, tokens: int) -> float:
        return self.constant + self.per_token * tokens


def kept_bytes(loss_of: Callable[[Batch], Tensor], batch: Batch, module: nn.Module) -> int:
    """Of the distinct storages that are kept and were not there before. No graph is left: an output that is given back
    to the node that made it would hold it for ever, and the model with it."""
    there = [*module.parameters(), *module.buffers(), *batch.inputs.values(), batch.targets]
    known = {value.untyped_storage().data_ptr() for value in there}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place

    with torch.autograd.graph.saved_tensors_hooks(keep, _never):
        loss_of(batch)
    return sum(storage.nbytes() for storage in kept.values())


def _never(_: None) -> Tensor:
    raise AssertionError("nobody goes back through what is only counted")


def kept_by(module: nn.Module, lowest: int = 0) -> Kept:
    """By the fast form of the blocks from `lowest` on, with every token learned."""
    batches = [probe(module, lengths, torch.Generator().manual_seed(0)) for lengths in (SMALL, LARGE)]
    return _line(FastLoss(module, lowest=lowest), batches, module)


def kept_by_plain(module: nn.Module, loss_of: Callable[[Batch], Tensor], batch_of: Callable[[int], Batch]) -> Kept:
    """By the model's own code; `batch_of` makes a batch of one row of so many tokens, with a loss for each."""
    device = next(module.parameters()).device
    return _line(loss_of, [batch_of(length).to(device) for length in (SMALL[0], LARGE[0])], module)


def _line(loss_of: Callable[[Batch], Tensor], batches: Sequence[Batch], module: nn.Module) -> Kept:
    """Through two sizes."""
    (small, few), (large, many) = ((batch.size, kept_bytes(loss_of, batch, module)) for batch in batches)
    per_token = (many - few) / (large - small)
    return Kept(few - per_token * small, per_token)
