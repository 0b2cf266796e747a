"""Curves in text: each column of a chart is the mean of its share of the values.

    3.21 |#.
         |##..
    1.87 |####....

With UTF-8 the blocks of Unicode divide each line into eight levels; without, a line has the two levels of `.` and `#`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankwise.reporting.sparkline import bucket_means

BLOCKS, SIGNS = " ▁▂▃▄▅▆▇█", " .#"
EMPTY = ""


def chart(values: Sequence[float], width: int, height: int, blocks: bool = True) -> list[str]:
    """Lines from the top, each of `width` characters at most. Values that are not finite leave their column empty."""
    columns = bucket_means(values, width)
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return [EMPTY] * height
    low, high, levels = min(finite), max(finite), BLOCKS if blocks else SIGNS
    fine = len(levels) - 1
    heights = [
        1 + round(_share(one, low, high) * (height * fine - 1)) if math.isfinite(one) else None for one in columns
    ]
    return ["".join(_sign(one, line, levels) for one in heights).rstrip() for line in reversed(range(height))]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _sign(filled: int | None, line: int, levels: str) -> str:
    fine = len(levels) - 1
    return levels[0] if filled is None else levels[max(0, min(fine, filled - line * fine))]
