"""The loss of a frozen output head, with its gradient made on the way, some rows at a time.

    z = h W^T,  loss = sum(log sum exp z - z_target),  dh = (softmax(z) - onehot) W

Logits are the largest tensor of a small model's step: N x V numbers, several times over in autograd. Here ROWS of them
are there at a time, and nothing is kept but dh, which the backward pass multiplies by what arrives. Products are in the
number format of h, all else in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROWS = 256


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """hidden (N, d), weight (V, d) that is not trained, targets (N,) to the sum of losses in nats, a float32 scalar."""
    return _HeadLoss.apply(hidden, weight, targets)


def plain_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same by autograd."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        learning = ctx.needs_input_grad[0]
        total = hidden.new_zeros((), dtype=exact)
        change = torch.empty_like(hidden) if learning else hidden[:0]
        for first in range(0, len(hidden), ROWS):
            rows, wanted = hidden[first : first + ROWS], targets[first : first + ROWS, None]
            logs = torch.log_softmax(rows @ weight.T, -1, dtype=exact)
            total -= logs.gather(1, wanted).sum()
            if learning:
                shares = logs.exp_()
                shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
                torch.mm(shares.to(hidden.dtype), weight, out=change[first : first + ROWS])
        ctx.save_for_backward(change)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (change,) = ctx.saved_tensors
        return change * grad.to(change.dtype), None, None
