"""Stop 7: logits and targets into a sum and a count, never a mean: only the step knows how many tokens all its
micro-batches hold together. Next: step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.data.batches import Batch

Forward = Callable[[Batch], Tensor]
"""A batch to logits (N, V), one row for each of its N supervised positions."""


Loss = Callable[[Batch], Tensor]
"""A batch to the sum of its losses in nats, one for each supervised position."""


def summed(forward: Forward) -> Loss:
    return lambda batch: token_loss(forward(batch), batch)[0]


def token_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """Negative log-likelihood in nats, summed over the supervised tokens in float32 or more, and how many they are."""
    targets = batch.targets[batch.supervised]
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, targets, reduction="sum"), targets.numel()


@torch.no_grad()
def mean_loss(loss_of: Loss, batches: Iterable[Batch], device: torch.device) -> tuple[float, int]:
    """Nats per supervised token over all batches, and the number of tokens."""
    total, count = 0.0, 0
    for batch in batches:
        there = batch.to(device)
        total, count = total + loss_of(there).item(), count + int(there.supervised.sum())
    return total / count, count
