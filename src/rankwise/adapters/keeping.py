"""Which triplets a budget keeps: exactly, the same each time, and without making the host wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 6
"""Each goes on behind what did not fit, where something cheaper may."""


def keep_best(scores: Tensor, budget: int) -> Tensor:
    """Exactly `budget` triplets, or all. By order and not by threshold: with equal scores the earlier one is kept."""
    order = scores.argsort(descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, order[:budget], True)


def keep_worth(scores: Tensor, costs: Tensor, budget: int, layers: Tensor, entries: Tensor) -> Tensor:
    """The best by score for each parameter, as long as together they cost no more than `budget` parameters.

    `layers` (b,) says in which layer each triplet is, and `entries` (layers,) what the first one there costs more.
    """
    order = (scores / costs).argsort(descending=True, stable=True)
    costs, layers = costs[order].long(), layers[order]
    kept = torch.zeros_like(costs, dtype=torch.bool)
    entered = torch.zeros_like(entries, dtype=torch.bool)
    left = costs.new_tensor(budget)
    for _ in range(PASSES):
        fits = ~kept & (costs + torch.where(entered, 0, entries)[layers] <= left)
        first = _first_of_each(layers, fits & ~entered[layers], len(entries))
        price = torch.where(fits, costs + first * entries[layers], 0)
        taken = fits & (price.cumsum(0) <= left)
        left = left - torch.where(taken, price, 0).sum()
        kept |= taken
        entered = torch.zeros_like(entries).index_add(0, layers, kept.to(entries.dtype)) > 0
    return torch.zeros_like(kept).index_copy_(0, order, kept)


def _first_of_each(layers: Tensor, among: Tensor, count: int) -> Tensor:
    """(b,) whether a place is the first of its layer `among` those."""
    places = torch.arange(len(layers), device=layers.device, dtype=torch.float32)  # MPS has no smallest of integers
    behind = torch.where(among, places, float(len(layers)))
    first = places.new_full((count,), float(len(layers))).scatter_reduce(0, layers, behind, "amin")
    return among & (first[layers] == places)
