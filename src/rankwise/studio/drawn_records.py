"""New records of a run as the page draws them: columns of numbers, of which a browser gets so many at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rankwise.reporting.sparkline import bucket_means
from rankwise.runs.records import rank_grid

MOST_STEPS = 2500
"""Steps of one message; more are sent as means of neighbours."""
COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "resident_bytes", "seconds")


def message(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The records as the page draws them: steps as columns, and the last of the rank allocations."""
    of = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("step", "validation", "score", "ranks")}
    totals = [row["steps"] for row in of["step"] if _is_count(row.get("steps"))]
    return {
        "steps": _thinned([one for row in of["step"] if (one := _numbers(row, COLUMNS)) is not None]),
        "of": totals[-1] if totals else None,
        "validation": [one for row in of["validation"] if (one := _point(row, "loss")) is not None],
        "scores": [[str(row.get("metric"))[:60], *one] for row in of["score"]
                   if (one := _point(row, "value")) is not None],
        "ranks": _grid(of["ranks"][-1]) if of["ranks"] else None,
    }  # fmt: skip


def _point(row: dict[str, Any], value: str) -> list[float | None] | None:
    """A step and its value, where both are numbers."""
    numbers = _numbers(row, ("step", value))
    return None if numbers is None or None in numbers else numbers


def _numbers(row: dict[str, Any], columns: Sequence[str]) -> list[float | None] | None:
    """A value that is not finite is None; None for a row whose first value is no number."""
    values = [row.get(name) for name in columns]
    finite = [
        float(one) if isinstance(one, int | float) and abs(one) < 1e300 and math.isfinite(one) else None
        for one in values
    ]
    return None if finite[0] is None else finite


def _thinned(steps: list[list[float | None]]) -> list[list[float | None]]:
    """Means of neighbouring steps, by column; the number of a step is that of the last of its neighbours."""
    if len(steps) <= MOST_STEPS:
        return steps
    ends = [round((at + 1) * len(steps) / MOST_STEPS) - 1 for at in range(MOST_STEPS)]
    columns = [
        bucket_means([math.nan if one is None else one for one in column], MOST_STEPS)
        for column in zip(*steps, strict=True)
    ]
    columns[0] = [float(steps[end][0] or 0) for end in ends]
    return [[one if math.isfinite(one) else None for one in row] for row in zip(*columns, strict=True)]


def _grid(row: dict[str, Any]) -> dict[str, Any] | None:
    ranks = row.get("ranks")
    if not isinstance(ranks, dict) or not all(_is_count(one) for one in ranks.values()):
        return None
    blocks, kinds, cells = rank_grid(ranks)
    return {
        **{name: row[name] if _is_count(row.get(name)) else None for name in ("step", "budget", "of")},
        "unit": str(row.get("unit"))[:40],
        "final": row.get("final") is True, "blocks": blocks[:200], "kinds": kinds[:40],
        "cells": [[cells.get((block, kind)) for kind in kinds[:40]] for block in blocks[:200]],
    }  # fmt: skip


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53
