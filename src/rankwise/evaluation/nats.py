"""Each document's loss as a row of sums: [nats, learned tokens].

The mean over any choice of documents is then the sum of the first over the sum of the second, as a step's loss is in
training (metrics.py has it as `loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rankwise.data.batches import collate, portions_of
from rankwise.data.tokens import Tokens
from rankwise.models.causal import SupervisedLogits

AT_ONCE = 2048
"""Tokens, with padding."""


@torch.no_grad()
def loss_rows(
    module: nn.Module, documents: Sequence[Tokens], heard: Callable[[int], None] = lambda count: None
) -> list[list[float]]:
    """In the order of the documents, by the model as it is now. `heard` is told each time how many more are done."""
    forward, device = SupervisedLogits(module), next(module.parameters()).device
    order = sorted(range(len(documents)), key=lambda number: len(documents[number].ids), reverse=True)
    found: list[list[float]] = []
    for part in portions_of([documents[number] for number in order], AT_ONCE):
        batch = collate(part).to(device)
        document, _ = batch.supervised.nonzero(as_tuple=True)
        logits = forward(batch)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(exact, batch.targets[batch.supervised], reduction="none")
        totals = [nats[document == number].cpu().double() for number in range(len(part))]
        found += [[float(one.sum()), float(len(one))] for one in totals]
        heard(len(part))
    return [row for _, row in sorted(zip(order, found, strict=True))]
