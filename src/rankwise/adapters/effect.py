"""How much an adapter changes the weights that it lies over, as a share of their size.

    ||s B A|| / ||W||,   ||B A||^2 = trace((A A^T) (B^T B))

by Frobenius' norm, in float64 and from matrices of the rank's size, so that the change is never written out. DoRA's
change is not a product alone and is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import weight_of
from rankwise.adapters.set import AdapterSet
from rankwise.errors import TrainingError
from rankwise.models.sharding import gathered


@dataclass(frozen=True)
class Effect:
    """`share` is the largest of all layers, at `path`, whose weights are stored with the precision `rounding`; without
    a path where no layer has a rank."""

    path: str | None
    share: float
    rounding: float

    def check(self, settings: str) -> str | None:
        """TrainingError where not even float32 would tell the adapted model from its base; a warning where the base's
        own number format may not. `settings` are those that decide of it, with their values."""
        change = f'the adapter changes "{self.path}" most, by {self.share:.2g} of the norm of its weights'
        if self.path is None:
            raise TrainingError(f"nothing was learned: all layers have rank 0. Raise {settings}.")
        advice = f"Raise {settings}, or train for more steps."
        if self.share < torch.finfo(torch.float32).eps:
            raise TrainingError(f"nothing was learned: {change}, which is below the precision of float32. {advice}")
        if self.share < self.rounding:
            return f"{change}, less than the rounding of the base model's weights ({self.rounding:.2g}). {advice}"
        return None


@torch.no_grad()
def effect_of(adapters: AdapterSet, name: str = "default") -> Effect:
    if name not in adapters.names:
        return Effect(None, 0.0, 0.0)
    found = [_effect(adapters, path, adapter) for path, adapter in adapters.adapters(name).items()]
    return max(found, key=lambda one: one.share)


def _effect(adapters: AdapterSet, path: str, adapter: Adapter) -> Effect:
    weight = weight_of(adapters.host(path))
    norm = torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    whole = gathered(norm).item()
    change = _size(adapter)
    share = change / whole if whole else float("inf") if change else 0.0
    return Effect(path, share, torch.finfo(weight.dtype).eps / 2)


def _size(adapter: Adapter) -> float:
    if not adapter.additive:
        return torch.linalg.vector_norm(adapter.delta()).item()
    A, B = (factor.double() for factor in adapter.factors())
    return abs(adapter.scale) * ((A @ A.mT) * (B.mT @ B)).sum().clamp_min(0.0).sqrt().item()
