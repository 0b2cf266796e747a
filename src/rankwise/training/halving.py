"""Which rate to take, from the held-out losses of short trials: successive halving, and a parabola over log rate.

    stage 1   a few rates a factor of two apart: for each a training of a few steps, decayed to zero within them
    stage 2   the two rates around the least point of a parabola through these losses, a factor of the square root of
              two apart, for more steps
    best      the least point of a parabola as curved as that of stage 1 through the losses of stage 2
    choice    default x (best / default)^w,   w = n / (n + HALF),   n steps in a trial of stage 2

The best rate of a trial that decays to zero within its own steps hardly depends on how many there are, but grows with
the root of the rows in a step (lab/tuning.md), so a trial's rate stands for `run rate x sqrt(its rows / the run's)`.
What is found by few steps is uncertain, and defaults are not far off, so the choice is drawn towards the default by as
much as the trials are short. Rates are counted in half octaves from the default: rate = default x 2^(x / 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankwise.planning.tuning import Stage

WIDEST = 4.0
"""Half octaves by which the best of the trials may be off the default."""
HALF = 10
"""Steps of a trial that count as much as the default."""
FLAT = 0.01
Measured = Callable[[Stage, float], float]
"""The held-out loss of a trial that stands for a rate, in half octaves; infinite where it diverged."""


@dataclass(frozen=True)
class Choice:
    x: float
    best: float
    """Before it was drawn towards the default."""
    flat: tuple[float, float] | None
    """Between which rates the parabola is less than FLAT above its least point."""


def choose(stages: Sequence[Stage], ceiling: float, measured: Measured, before: float) -> Choice | None:
    """By successive halving over rates below the ceiling, which may leave only the lowest. None, without the second
    stage, where no trial of the first ended below the loss `before` training."""
    first, second = stages
    spread = [2 * (at - (first.rates - 1) / 2) for at in range(first.rates)]
    points = [(x, measured(first, x)) for x in spread if x <= ceiling or x == spread[0]]
    if min(loss for _, loss in points) >= before:
        return None
    curve = parabola(points)
    middle = min(max(curve.least, -WIDEST), WIDEST, max(ceiling - 0.5, spread[0]))
    low, high = middle - 0.5, middle + 0.5
    best = curve.moved(middle, measured(second, low), measured(second, high))
    best = min(max(best, low, -WIDEST), high, WIDEST)  # stage 1 is too short to tell how far beyond
    return Choice(best * second.steps / (second.steps + HALF), best, curve.flat(best))


@dataclass(frozen=True)
class Parabola:
    """loss = height + curvature (x - least)^2"""

    least: float
    height: float
    curvature: float

    def moved(self, middle: float, low: float, high: float) -> float:
        """The least point of one as curved as this through two losses half an octave apart, around `middle`."""
        if not math.isfinite(low + high) or self.curvature <= 0:
            return middle - 0.5 if low <= high else middle + 0.5
        return middle - (high - low) / (2 * self.curvature)

    def flat(self, around: float) -> tuple[float, float] | None:
        if self.curvature <= 0 or self.height <= 0:
            return None
        half = math.sqrt(FLAT * self.height / self.curvature)
        return around - half, around + half


def parabola(points: Sequence[tuple[float, float]]) -> Parabola:
    """Through the best point and its neighbours; where these are too few or not curved, its least point is the best."""
    finite = [(x, loss) for x, loss in points if math.isfinite(loss)]
    if not finite:
        return Parabola(points[0][0], math.inf, 0.0)
    at = min(range(len(finite)), key=lambda one: finite[one][1])
    near = finite[max(0, min(at - 1, len(finite) - 3)) :][:3]
    if len(near) < 3:
        return Parabola(*finite[at], 0.0)
    (x0, y0), (x1, y1), (x2, y2) = near
    slope, next_slope = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (next_slope - slope) / (x2 - x0)
    if curvature <= 0:
        return Parabola(*finite[at], 0.0)
    least = (x0 + x1) / 2 - slope / (2 * curvature)
    return Parabola(min(max(least, x0), x2), finite[at][1], curvature)
