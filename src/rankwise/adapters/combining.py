"""Several adapters as one: their factors joined, cut to a rank, or their laid-out changes trimmed or thinned first.

    linear   D = sum_i w_i s_i B_i A_i        exactly a LoRA: the factors side by side, of the sum of the ranks
    svd      the nearest change of rank r to that sum (low_rank.py)
    ties     Yadav et al. 2023 (arXiv 2306.01708), in each layer: of each D_i = s_i B_i A_i the share `density` that is
             largest in magnitude stays; the sign of a number is that of the sum of what stayed of all; the result is
             the mean of w_i D_i over the adapters whose number has this sign, and zero where none has
    dare     Yu et al. 2023 (arXiv 2311.03099): each number of D_i is dropped with probability p and the others divided
             by 1 - p, then D = sum_i w_i D_i; which ones is drawn by a seed, the layer and the adapter

Linear and svd need no layer laid out. Ties and dare are computed piece by piece, so that a layer is never there twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankwise.adapters.low_rank import LowRank, of_factors, of_matrix
from rankwise.adapters.weights import Factors

Combination = Literal["linear", "ties", "dare", "svd"]


@dataclass(frozen=True)
class Combining:
    """How the changes of several adapters become one. `rank` and `error` are for a result of lower rank, `density` for
    ties, `drop` and `seed` for dare."""

    kind: Combination = "linear"
    density: float = 0.2
    drop: float = 0.5
    seed: int = 0
    rank: int | None = None
    error: float | None = None

    @property
    def lays_out(self) -> bool:
        """Whether a layer's change is no product of the adapters' factors."""
        return self.kind in ("ties", "dare")

    @property
    def cuts(self) -> bool:
        return self.rank is not None or self.error is not None


Weighted = Sequence[tuple[Factors, float]]
"""One layer of each adapter, with the adapter's weight."""


def joined(parts: Weighted, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """B (O, R) and A (R, I) in `dtype`, with R the sum of the ranks: B A is the weighted sum of the changes."""
    A = torch.cat([part.A.to(dtype).flatten(1) for part, _ in parts])
    B = torch.cat([part.B.to(dtype).flatten(1) * (part.scale * weight) for part, weight in parts], 1)
    return B, A


def cut(B: Tensor, A: Tensor, combining: Combining) -> LowRank:
    """The nearest product of a lower rank."""
    return of_factors(B, A, combining.rank, combining.error)


@dataclass(frozen=True)
class Laid:
    """The change of one layer by ties or dare, in rows of the stored weight: `left` (rows, R) and `right` (R, columns)
    of each adapter, unweighted, the adapters' weights, and for ties the smallest magnitude that stays."""

    combining: Combining
    name: str
    pairs: tuple[tuple[Tensor, Tensor], ...]
    weights: tuple[float, ...]
    smallest: tuple[float, ...] = ()

    def rows(self, first: int, last: int) -> Tensor:
        changes = [left[first:last] @ right for left, right in self.pairs]
        if self.combining.kind == "ties":
            return _elected(changes, self.smallest, self.weights)
        total = torch.zeros_like(changes[0])
        for number, (change, weight) in enumerate(zip(changes, self.weights, strict=True)):
            total.add_(self._thinned(change, number, first), alpha=weight)
        return total

    def _thinned(self, change: Tensor, number: int, first: int) -> Tensor:
        drop = self.combining.drop
        text = f"{self.combining.seed}:{number}:{first}:{self.name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
        drawn = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed))
        return change.mul_(drawn >= drop).div_(1 - drop)


def _elected(changes: Sequence[Tensor], smallest: Sequence[float], weights: Sequence[float]) -> Tensor:
    trimmed = [change.mul_(change.abs() >= least) for change, least in zip(changes, smallest, strict=True)]
    sign = torch.where(sum(trimmed[1:], trimmed[0].clone()) >= 0, 1.0, -1.0).to(trimmed[0].dtype)
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in zip(trimmed, weights, strict=True):
        agrees = change.sign() == sign
        total.add_(change.mul_(agrees), alpha=weight)
        count.add_(agrees)
    return total.div_(count.clamp_min_(1))


def laid(
    combining: Combining, name: str, pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> Laid:  # fmt: skip
    """`name` is the parameter's, by which dare draws."""
    smallest = tuple(_smallest(*pair, combining.density) for pair in pairs) if combining.kind == "ties" else ()
    return Laid(combining, name, tuple(pairs), tuple(weights), smallest)


def _smallest(left: Tensor, right: Tensor, density: float) -> float:
    """The magnitude from which a share `density` of the numbers of left @ right is."""
    magnitudes = (left @ right).abs_().flatten()
    stays = int(density * magnitudes.numel())
    if stays == 0:
        return float("inf")
    return float(torch.kthvalue(magnitudes, magnitudes.numel() - stays + 1).values)


def cut_laid(change: Laid, rows: int, pieces: Sequence[tuple[int, int]]) -> LowRank:
    """The nearest change of the rank or the error that was asked for; lays the layer out once."""
    assert rows == pieces[-1][1], "all rows"
    whole = torch.cat([change.rows(first, last) for first, last in pieces])
    return of_matrix(whole, change.combining.rank, change.combining.error, change.combining.seed)
