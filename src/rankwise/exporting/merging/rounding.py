"""What the one rounding of a merge costs, measured for every layer while it is written.

    largest      the largest |stored - exact| / |exact| of a number
    of change    |stored - exact| / |D| in Frobenius norms, with D the change: 0.1 means that a tenth of it is noise
    change       |D| / |W|

`exact` is the sum in the format that it was computed in; for a float32 base it is computed again in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounding:
    name: str
    largest: float
    of_change: float
    change: float


@dataclass
class RoundingMeter:
    """Adds up pieces of one tensor."""

    name: str
    finite: bool = True
    _largest: float = 0.0
    _sums: dict[str, float] = field(default_factory=lambda: {"error": 0.0, "change": 0.0, "base": 0.0})

    def add(self, base: Tensor, exact: Tensor, stored: Tensor) -> None:
        """Rows before and after, in the format that was computed in, and after rounding."""
        error = stored.to(exact.dtype, copy=True).sub_(exact)  # in one format it is the very tensor that is written
        self.finite &= bool(torch.isfinite(error).all())
        self._sums["error"] += _energy(error)
        self._sums["base"] += _energy(base)
        self._sums["change"] += _energy(exact - base)
        relative = error.div_(exact).abs_().nan_to_num_(0.0, 0.0, 0.0)  # 0 / 0 where a number is zero
        self._largest = max(self._largest, float(relative.max())) if relative.numel() else self._largest

    @property
    def result(self) -> Rounding:
        error, change, base = (math.sqrt(self._sums[name]) for name in ("error", "change", "base"))
        return Rounding(
            self.name, self._largest, error / change if change else 0.0, change / base if base else 0.0
        )  # fmt: skip


def _energy(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
