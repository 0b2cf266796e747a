"""Which triplets AdaLoRA keeps: how many may live, how much each matters, and the choice.

The budget is a pure function of the step:

    b(t) = first                                                  t <= warm-up
           last + (first - last) (1 - (t - ti) / (T - tf - ti))^3    until the final phase
           last                                                   from t = T - tf on

as in the authors' code; the paper's formula subtracts tf in the numerator too and does not meet its own ends. t counts
the optimizer steps done before this one. What a budget that was asked for comes to is in config/parameters.py.

A triplet matters by the gradients that training makes anyway (Zhang et al. 2023, section 3.2):

    I = |w dL/dw|                        sensitivity of each number
    average(I)   with beta1              smoothed over steps
    average(|I - average(I)|)  beta2     how uncertain it is
    s = average(I) * average(|...|)
    score = s(strength) + mean s(row of P) + mean s(row of Q)

Both averages start at zero. By default w is the value after the optimizer step and the gradient that of before, as in
the authors' code: a strength that was set to zero would otherwise have no sensitivity for ever.

The choice is exact, the same each time, and does not make the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.adapters.triplets import Triplets
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.parameters import budget_of as budget_of

IN_CACHE = 1 << 17
"""Numbers at a time on a processor: six passes over half a megabyte cost less than six over all there is."""
PASSES = 6
"""Each goes on behind what did not fit, where something cheaper may."""


@dataclass
class Importance:
    """The averages over vectors (N,) and strengths (b,), as `Triplets` has them."""

    beta1: float
    beta2: float
    averages: tuple[Tensor, Tensor]
    uncertainties: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, triplets: Triplets, beta1: float, beta2: float) -> Importance:
        flat = (triplets.vectors, triplets.strengths)
        first, second = (tuple(torch.zeros_like(values.data) for values in flat) for _ in range(2))
        return cls(beta1, beta2, (first[0], first[1]), (second[0], second[1]))

    @torch.no_grad()
    def observe(self, triplets: Triplets, unrelated: Sequence[Tensor] | None = None) -> None:
        """Update the importance of each number from the present gradients. Where one is not finite nothing changes,
        which is decided without waiting for the device. `unrelated` are the parts of both gradients that do not come
        from the rows; they are subtracted."""
        sums = [values.grad.sum() for values in (triplets.vectors, triplets.strengths) if values.grad is not None]
        taken = torch.stack(sums).sum().isfinite().to(sums[0].dtype)
        flat = (triplets.vectors, triplets.strengths)
        without = (None, None) if unrelated is None else unrelated
        for values, other, averages, uncertainties in zip(
            flat, without, self.averages, self.uncertainties, strict=True
        ):
            assert values.grad is not None, "gradients are views, and there from the beginning"
            gradients = values.grad if other is None else values.grad - other
            at_once = IN_CACHE if values.device.type == "cpu" else values.numel()
            buffers = (buffer.split(max(1, at_once)) for buffer in (values, gradients, averages, uncertainties))
            for value, gradient, average, uncertainty in zip(*buffers, strict=True):
                sensitivity = (value * gradient).abs_().nan_to_num_(0.0, 0.0, 0.0)
                average.lerp_(sensitivity, taken * (1 - self.beta1))
                uncertainty.lerp_(sensitivity.sub_(average).abs_(), taken * (1 - self.beta2))

    @torch.no_grad()
    def scores(self, triplets: Triplets) -> Tensor:
        """(b,)"""
        of_vectors, of_strengths = (a * u for a, u in zip(self.averages, self.uncertainties, strict=True))
        of_p, of_q = triplets.per_triplet(of_vectors)
        return of_strengths + of_p + of_q


@dataclass(frozen=True)
class Schedule:
    """`warmup` and `final` count steps; `interval` is how many lie between two decisions."""

    first: int
    last: int
    warmup: int
    final: int
    steps: int
    interval: int

    @classmethod
    def of(cls, config: AdaLoraConfig, first: int, last: int, steps: int) -> Schedule:
        interval = min(100, max(1, steps // 200)) if config.interval == "auto" else config.interval
        return cls(first, last, round(config.warmup * steps), max(1, round(config.final * steps)), steps, interval)

    @property
    def decided(self) -> int:
        """The first step of the final phase, after which the ranks stay."""
        return max(self.steps - self.final, 0)

    def budget(self, step: int) -> int:
        if step <= self.warmup:
            return self.first if step < self.decided else self.last
        if step >= self.decided:
            return self.last
        left = 1 - (step - self.warmup) / (self.decided - self.warmup)
        return int(self.last + (self.first - self.last) * left**3)

    def is_due(self, step: int) -> bool:
        return self.warmup < step < self.decided and step % self.interval == 0


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
