"""A loss at a glance: a line without scales, since a table has one in each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rankwise.reporting.figures import Sheet
from rankwise.reporting.markup import Markup, element
from rankwise.reporting.quantities import figure

WIDTH, HEIGHT, EDGE = 120, 28, 2
MOST_POINTS = 60
CUT = 0.02
"""The share of the points above the top of the line: a first step far above all others would flatten the rest."""


def sparkline(losses: Sequence[float]) -> Markup:
    """Each point is the mean of its share of the steps."""
    means = bucket_means([one for one in losses if math.isfinite(one)], MOST_POINTS)
    if len(means) < 2:
        return Markup("")
    low, high = min(means), sorted(means)[-1 - int(CUT * len(means))]
    sheet = Sheet(WIDTH, HEIGHT)
    panel = sheet.panel(EDGE, EDGE, EDGE, EDGE)
    panel.x, panel.y = (0, len(means) - 1), (low, high if high > low else low + 1)
    panel.line(range(len(means)), [min(mean, high) for mean in means], "tuned", width=1.6)
    return element(
        "svg", sheet.drawn, class_="spark", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
        aria_label=f"loss from {figure(means[0])} to {figure(means[-1])}",
    )  # fmt: skip


def bucket_means(values: Sequence[float], most: int) -> list[float]:
    """At most so many means of neighbouring values, of equal shares as far as they can be. Values that are not finite
    are left out; NaN where none is left."""
    count = min(most, len(values))
    ends = [round(at * len(values) / count) for at in range(count + 1)] if count else []
    parts = ([one for one in values[a:b] if math.isfinite(one)] for a, b in pairwise(ends))
    return [sum(part) / len(part) if part else math.nan for part in parts]
