"""Singular values of each layer's change, from the factors alone: the rank that is really used, and what stands out.

    s B A,   B = Q R,   A^T = P T        singular values of  s R T^T,  a matrix of the rank's size

so that the change is never laid out. The rank that suffices for an error e is the smallest k with

    sqrt(s_{k+1}^2 + ... + s_r^2)  <=  e sqrt(s_1^2 + ... + s_r^2)

**Planted changes.** Editing one fact or one backdoor into a layer by hand adds a single direction u v^T to it. Training
makes spectra whose first direction may dominate too, but in a similar way in many layers. So a layer is compared with
the other layers of its kind (with all others, where its kind has fewer than MANY) by x = log(s_1 / s_2) and log s_1:

    d(x)   =  x - median of x in the others
    z(x)   =  d(x) / max(1.4826 median of |d(x)| over all layers, FLOOR)
    score  =  min(z(log s_1 / s_2), z(log s_1))

A layer is pointed out if its score is above THRESHOLD, so both its dominance and its size must be unusual. This is a
hint and no proof: bench/planted_changes.py measures how often it errs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from rankwise.adapters.weights import AdapterWeights, Factors

ERRORS = (0.01, 0.05)
MANY = 5
"""Layers that a median is taken of at least."""
FLOOR = 0.15
THRESHOLD = 5.0
_BLOCKS = str.isdecimal
Done = Callable[[int, int], None]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one layer's change, the largest first."""

    values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """Frobenius' norm of the change."""
        return math.sqrt(sum(value * value for value in self.values))

    @property
    def dominance(self) -> float | None:
        """The first singular value divided by the second; None where there is no second."""
        if len(self.values) < len(("first", "second")) or not self.values[0]:
            return None
        return self.values[0] / max(self.values[1], 1e-9 * self.values[0])

    def rank_at(self, error: float) -> int:
        """The smallest rank that changes the layer by at most `error`, as a share of the change's norm."""
        allowed, rest = (error * self.norm) ** 2, 0.0
        for kept in range(len(self.values), 0, -1):
            rest += self.values[kept - 1] ** 2
            if rest > allowed:
                return kept
        return 0

    @property
    def used(self) -> int:
        """The rank of the change as far as float32 tells."""
        return self.rank_at(1e-6)


@dataclass(frozen=True)
class Planted:
    """A layer whose first direction stands out from those of other layers."""

    path: str
    score: float
    dominance: float
    usual: float
    """The median dominance of the layers that it was compared with."""


@torch.no_grad()
def spectrum_of(part: Factors) -> Spectrum:
    """The singular values of a layer's change before DoRA's magnitude, in float64."""
    if not part.rank:
        return Spectrum(())
    A, B = part.matrices()
    inner = torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.T, mode="r").R.T
    return Spectrum(tuple(torch.linalg.svdvals(inner).tolist()))


def spectra_of(weights: AdapterWeights, done: Done = lambda number, total: None) -> dict[str, Spectrum]:
    """The spectrum of each layer and expert by path; `done` is told how many of all there are so far."""
    spectra, factors = dict[str, Spectrum](), weights.each
    for path, part in factors.items():
        spectra[path] = spectrum_of(part)
        done(len(spectra), len(factors))
    return spectra


def planted(spectra: Mapping[str, Spectrum], threshold: float = THRESHOLD) -> list[Planted]:
    """The layers that stand out, the most conspicuous first."""
    dominances = {path: value for path, one in spectra.items() if (value := one.dominance) is not None}
    scores = scores_of(spectra)
    found = [
        Planted(path, score, dominances[path], median([dominances[one] for one in _peers(path, list(dominances))]))
        for path, score in scores.items()
        if score > threshold
    ]
    return sorted(found, key=lambda item: -item.score)


def scores_of(spectra: Mapping[str, Spectrum]) -> dict[str, float]:
    """The score of each layer that has a second singular value and enough others to be compared with."""
    shapes = {
        path: (math.log(value), math.log(one.values[0]))
        for path, one in spectra.items()
        if (value := one.dominance) is not None
    }
    if len(shapes) <= MANY:
        return {}
    others = {path: _peers(path, list(shapes)) for path in shapes}
    scores = [_deviations({path: shape[at] for path, shape in shapes.items()}, others) for at in (0, 1)]
    return {path: min(score[path] for score in scores) for path in shapes}


def _peers(path: str, paths: Sequence[str]) -> list[str]:
    """The other layers of the same kind, or all others where there are few of them."""
    kind = kind_of_layer(path)
    same = [one for one in paths if one != path and kind_of_layer(one) == kind]
    return same if len(same) >= MANY else [one for one in paths if one != path]


def kind_of_layer(path: str) -> str:
    """The path of a layer without the numbers of its block."""
    return ".".join(part for part in path.split(".") if not _BLOCKS(part))


def _deviations(values: Mapping[str, float], peers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """z of each value: its distance from the median of its others, in units of the usual distance."""
    distances = {path: value - median(values[one] for one in peers[path]) for path, value in values.items()}
    usual = max(1.4826 * median(map(abs, distances.values())), FLOOR)
    return {path: distance / usual for path, distance in distances.items()}
