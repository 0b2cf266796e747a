"""The divergence of a tuned model's predictions from its base's, which computes its gradient on the way.

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
from torch.nn import functional as F

from rankwise.kernels.quantized.tensor import unpacked
from rankwise.kernels.row_pieces import cached_rows

ROWS = 64


def head_divergence(hidden: Tensor, weight: Tensor, base: Tensor) -> Tensor:
    """Sum KL in nats, a float32 scalar, of the tuned model's and the base's inputs of the head, both (N, d), and the
    frozen weight (V, d) of the head. Only `hidden` gets a gradient."""
    return _Divergence.apply(hidden, base, weight)


def divergence(logits: Tensor, base: Tensor) -> Tensor:
    """The same of logits (N, V) of both models."""
    return _Divergence.apply(logits, base, None)


def plain_divergence(logits: Tensor, base: Tensor) -> Tensor:
    """Compute the same with autograd, as the reference for tests."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = (torch.log_softmax(one, -1, dtype=dtype) for one in (base, logits))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


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
    """Of logits, or with a weight of inputs of the head."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, base: Tensor, weight: Tensor | None) -> Tensor:
        weight = None if weight is None else unpacked(weight)
        total = values.new_zeros((), dtype=torch.promote_types(values.dtype, torch.float32))
        learning = ctx.needs_input_grad[0]
        change = torch.empty_like(values) if learning else values[:0]
        for first in range(0, len(values), ROWS):
            rows = slice(first, first + ROWS)
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
