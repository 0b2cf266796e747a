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


def token_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """Negative log-likelihood in nats, summed in float32 over the supervised tokens, and how many they are."""
    targets = batch.targets[batch.supervised]
    return F.cross_entropy(logits.float(), targets, reduction="sum"), targets.numel()


@torch.no_grad()
def mean_loss(forward: Forward, batches: Iterable[Batch], device: torch.device) -> tuple[float, int]:
    """Nats per supervised token over all batches, and the number of tokens."""
    total, count = 0.0, 0
    for batch in batches:
        there = batch.to(device)
        loss, tokens = token_loss(forward(there), there)
        total, count = total + loss.item(), count + tokens
    return total / count, count
