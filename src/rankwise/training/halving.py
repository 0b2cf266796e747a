"""Which rate to take, from the held-out losses of short trials: successive halving, and a parabola over log rate.

    stage 1   a few rates a factor of two apart: for each a training of a few steps, decayed to zero within them
    stage 2   the two rates around the least point of a parabola through these losses, a factor of the square root of
              two apart, for more steps
    choice    the least point of a parabola as curved as that of stage 1 through the losses of stage 2, divided by
              CORRECTION

A training of few steps has another best rate than the whole run, by which a trial's rate is the run's times CORRECTION.
Rates are counted in half octaves from the default: rate = default x 2^(x / 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankwise.planning.tuning import Stage

CORRECTION = 0.0
"""Half octaves."""
WIDEST = 4.0
"""Half octaves by which the choice may be off the default at most."""
FLAT = 0.01
Measured = Callable[[Stage, float], float]
"""The held-out loss of a trial of a stage at a rate, in half octaves from the default; infinite where it diverged."""


@dataclass(frozen=True)
class Choice:
    x: float
    flat: tuple[float, float] | None
    """Between which rates the curve is less than FLAT above its least point."""


def choose(stages: Sequence[Stage], ceiling: float, measured: Measured) -> Choice:
    """Successive halving over rates below the ceiling."""
    first, second = stages
    spread = [CORRECTION + 2 * (at - (first.rates - 1) / 2) for at in range(first.rates)]
    points = [(x, measured(first, x)) for x in spread if x <= ceiling or x == spread[0]]
    curve = parabola(points)
    middle = min(max(curve.least, CORRECTION - WIDEST), CORRECTION + WIDEST, ceiling - 0.5)
    low, high = middle - 0.5, middle + 0.5
    losses = measured(second, low), measured(second, high)
    x = min(max(curve.shifted(middle, *losses), low - 1), high + 1)
    return Choice(x - CORRECTION, curve.flat(x))


@dataclass(frozen=True)
class Parabola:
    """loss = height + curvature (x - least)^2"""

    least: float
    height: float
    curvature: float

    def shifted(self, middle: float, low: float, high: float) -> float:
        """The least point of one as curved as this through two losses half an octave apart, around `middle`."""
        if not math.isfinite(low) or not math.isfinite(high) or self.curvature <= 0:
            return middle - 0.5 if low <= high else middle + 0.5
        return middle - (high - low) / (2 * self.curvature)

    def flat(self, x: float) -> tuple[float, float] | None:
        if self.curvature <= 0 or self.height <= 0:
            return None
        half = math.sqrt(FLAT * self.height / self.curvature)
        return x - half - CORRECTION, x + half - CORRECTION


def parabola(points: Sequence[tuple[float, float]]) -> Parabola:
    """Through the best point and its neighbours; where these are too few or not curved, its least point is the best."""
    finite = [(x, loss) for x, loss in points if math.isfinite(loss)]
    if not finite:
        return Parabola(points[0][0], math.inf, 0.0)
    at = min(range(len(finite)), key=lambda one: finite[one][1])
    near = finite[max(0, min(at - 1, len(finite) - 3)) :][:3]
    best = finite[at]
    if len(near) < 3:
        return Parabola(best[0], best[1], 0.0)
    (x0, y0), (x1, y1), (x2, y2) = near
    slope, next_slope = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (next_slope - slope) / (x2 - x0)
    if curvature <= 0:
        return Parabola(best[0], best[1], 0.0)
    least = (x0 + x1) / 2 - slope / (2 * curvature)
    least = min(max(least, x0), x2)
    return Parabola(least, best[1], curvature)
