"""How far logits and gradients of one computation are from those of another: ||a - b|| / ||b||, of gradients also in
the median block of the model, and of several computations in the median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, isnan, nan
from statistics import median

import torch
from torch import Tensor, nn

from rankwise.config.modules import layer_number

EXACT = 2**18
"""Numbers converted to float64 at a time."""


@dataclass(frozen=True)
class Computed:
    """Logits and gradients of one backend in one dtype."""

    logits: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class Distance:
    """The relative distance ||a - b|| / ||b|| of logits and of gradients."""

    logits: float
    gradients: float

    def within(self, logits: float, gradients: float) -> bool:
        """Compare so that NaN is never within the limits."""
        return self.logits <= logits and self.gradients <= gradients

    def __str__(self) -> str:
        return f"logits by {self.logits:.2%} and gradients by {self.gradients:.2%}"


@dataclass(frozen=True)
class Roundings:
    """How far each backend is from float32 in the model's own dtype."""

    fused: Distance
    eager: Distance


def distance(value: Computed, other: Computed) -> Distance:
    return Distance(share(value.logits, other.logits), share(value.gradients, other.gradients))


def share(value: Tensor, other: Tensor) -> float:
    """Compute the relative distance part by part, since float64 copies of the logits would be the largest tensors of a
    run."""
    parts = list(zip(value.flatten().split(EXACT), other.flatten().split(EXACT), strict=True))
    apart = hypot(*((one.double() - two.double()).norm().item() for one, two in parts))
    whole = hypot(*(two.double().norm().item() for _, two in parts))
    return apart / whole if whole else 0.0 if apart == 0.0 else inf


def blocks_of(module: nn.Module, learned: Sequence[nn.Parameter]) -> list[list[slice]]:
    """Return where the gradients of each block are among all; what is in no block counts as one for each parameter."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    blocks: dict[int | str, list[slice]] = {}
    first = 0
    for parameter in learned:
        name = names.get(id(parameter), "")
        number, last = layer_number(name), first + parameter.numel()
        blocks.setdefault(name if number is None else number, []).append(slice(first, last))
        first = last
    return list(blocks.values())


def typical_distance(value: Computed, other: Computed, blocks: list[list[slice]]) -> Distance:
    """Return the distance of gradients in the median block."""
    shares = [
        share(*(torch.cat([one.gradients[part] for part in parts]) for one in (value, other))) for parts in blocks
    ]
    return Distance(share(value.logits, other.logits), _median(shares or [0.0]))


def middle(distances: Sequence[Distance]) -> Distance:
    """Return the median of logits and the median of gradients."""
    return Distance(*(_median([getattr(one, name) for one in distances]) for name in ("logits", "gradients")))


def _median(values: list[float]) -> float:
    """NaN if one is NaN."""
    return nan if any(map(isnan, values)) else median(values)
