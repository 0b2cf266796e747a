"""Cross-entropy of a frozen output head, which computes its gradient on the way, a block of rows at a time.

    z = h W^T,  loss = sum(log sum exp z - z_target),  dh = (softmax(z) - onehot) W

The logits are the largest tensor of a small model's step: N x V numbers, which autograd holds several times. Here only
ROWS rows of them exist at a time, and only dh is saved, which the backward pass multiplies by the incoming gradient.
Matrix products use the dtype of h, everything else float32.

Beside it, the divergence of a tuned model's predictions from its base's, which computes its gradient on the way.

    p = softmax(base),   q = softmax(tuned),   KL = sum p (log p - log q),   dKL/dtuned = q - p

The base's logits need no room of their own where the base's input of a frozen output head is at hand: it is much
smaller than the logits, and the head makes them from it, a block of rows at a time. Matrix products use the dtype of
the hidden states, everything else float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


COMPARED_ROWS = 64


def head_divergence(hidden: Tensor, weight: Tensor, base: Tensor) -> Tensor:
    """Sum KL in nats, a float32 scalar, of the tuned model's and the base's inputs of the head, both (N, d), and the
    frozen weight (V, d) of the head. Only `hidden` gets a gradient."""
    return _Divergence.apply(hidden, base, weight)


def divergence(logits: Tensor, base: Tensor) -> Tensor:
    """The KL divergence of a tuned model from its base, of logits (N, V) of both."""
    return _Divergence.apply(logits, base, None)


def _rows_of(logits: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """KL of some rows, and its gradient (n, V). A few rows at a time, so that what is float32 stays in the processor's
    cache."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total, excess = logits.new_zeros((), dtype=dtype), torch.empty_like(logits)
    for first, last in cached_rows(logits):
        log_p, log_q = (torch.log_softmax(one[first:last], -1, dtype=dtype) for one in (base, logits))
        p = log_p.exp()
        total += log_p.sub_(log_q).mul_(p).sum()
        excess[first:last] = log_q.exp_().sub_(p)
    return total, excess


class _Divergence(torch.autograd.Function):
    """The KL divergence and its gradient, of logits, or of inputs of the head where its weight is given."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, base: Tensor, weight: Tensor | None) -> Tensor:
        weight = None if weight is None else unpacked(weight)
        total = values.new_zeros((), dtype=torch.promote_types(values.dtype, torch.float32))
        learning = ctx.needs_input_grad[0]
        change = torch.empty_like(values) if learning else values[:0]
        for first in range(0, len(values), COMPARED_ROWS):
            rows = slice(first, first + COMPARED_ROWS)
            pair = (values[rows], base[rows])
            apart, excess = _rows_of(*(pair if weight is None else (one @ weight.T for one in pair)))
            if learning:
                change[rows] = excess if weight is None else excess @ weight
            total += apart
        ctx.save_for_backward(change)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (change,) = ctx.saved_tensors
        return change * grad.to(change.dtype), None, None
