"""Cross-entropy of a frozen output head, which computes its gradient on the way, a block of rows at a time.

    z = h W^T,  loss = sum(log sum exp z - z_target),  dh = (softmax(z) - onehot) W

The logits are the largest tensor of a small model's step: N x V numbers, which autograd holds several times. Here only
ROWS rows of them exist at a time, and only dh is saved, which the backward pass multiplies by the incoming gradient.
Matrix products use the dtype of h, everything else float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rankwise.kernels.quantized.tensor import unpacked
from rankwise.kernels.regions import CompiledRegion
from rankwise.kernels.row_pieces import cached_rows

ROWS = 256


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum the losses in nats, as a float32 scalar, of hidden (N, d), a frozen weight (V, d) and targets (N,)."""
    return _HeadLosses.apply(hidden, weight, targets).sum()


def head_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target (N,) in float32, of hidden (N, d) and a frozen weight (V, d)."""
    return -_HeadLosses.apply(hidden, weight, targets)


def plain_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute the same with autograd, as the reference for tests."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def _by_operations(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Map logits z (N, V) and labels (N, 1) to the losses (N, 1) and to softmax(z) - onehot, which takes z's memory
    here. A few rows at a time, so that their float32 copy stays in the processor's cache."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    losses = logits.new_empty((len(logits), 1), dtype=exact)
    for first, last in cached_rows(logits):
        logs = torch.log_softmax(logits[first:last], -1, dtype=exact)
        losses[first:last] = -logs.gather(1, labels[first:last])
        shares = logs.exp_()
        shares.scatter_add_(1, labels[first:last], shares.new_full((last - first, 1), -1.0))
        logits[first:last] = shares
    return losses, logits


def _in_passes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the same in passes over the logits alone, so that their float32 copy never exists once compiled."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    highest = exact.amax(1, keepdim=True)
    powers = (exact - highest).exp()
    total = powers.sum(1, keepdim=True)
    losses = total.log() + highest - exact.gather(1, labels)
    onehot = (torch.arange(logits.shape[1], device=logits.device) == labels).to(exact.dtype)
    return losses, (powers * (1 / total) - onehot).to(logits.dtype)


_loss_and_excess = CompiledRegion(_by_operations, _in_passes)


class _HeadLosses(torch.autograd.Function):
    """The loss of each target (N,)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact, weight = torch.promote_types(hidden.dtype, torch.float32), unpacked(weight)
        learning = ctx.needs_input_grad[0]
        losses = hidden.new_empty((len(hidden), 1), dtype=exact)
        change = torch.empty_like(hidden) if learning else hidden[:0]
        for first in range(0, len(hidden), ROWS):
            tile = slice(first, first + ROWS)
            logits, labels = hidden[tile] @ weight.T, targets[tile, None]
            if learning:
                losses[tile], excess = _loss_and_excess(logits, labels)
                torch.mm(excess, weight, out=change[tile])
            else:
                losses[tile] = -torch.log_softmax(logits, -1, dtype=exact).gather(1, labels)
        ctx.save_for_backward(change)
        return losses[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (change,) = ctx.saved_tensors
        return change * grad[:, None].to(change.dtype), None, None
