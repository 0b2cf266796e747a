"""Stop 7: the loss of a batch is a sum, never a mean: only the step knows how many predictions all its batches hold
together. Next: step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rankwise.data.batches import Batch

Loss = Callable[[Batch], Tensor]
"""A batch to the sum of the losses of its `count` predictions."""


@torch.no_grad()
def mean_loss(loss_of: Loss, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """The loss of a prediction over all batches, and the number of predictions."""
    total, count = 0.0, 0.0
    for batch in batches:
        total, count = total + loss_of(batch.to(device)).item(), count + batch.count
    return total / count, count
