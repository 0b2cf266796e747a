"""Confidence intervals of metrics, and tests for differences between two models.

The 95 % intervals use the bootstrap over items (Efron 1979), or Wilson's interval (1927) for shares of hits, which has
a width even if all or no items were hit. Two models are compared on the same items, pair by pair: the interval
bootstraps pairs, and the test swaps the two models within pairs at random (Noreen 1989). For hits, the interval is that
of Agresti and Min (2005), which adds half a pair of each kind. If only b hit in `gained` of n pairs and only a in
`lost`, it is

    (gained - lost) / (n + 2)  +-  z sqrt(gained + lost + 1 - (gained - lost)^2 / (n + 2)) / (n + 2)

which has a width even if no pair differs. A model counts as better or worse only if interval and test agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rankwise.evaluation.metrics import METRICS, Metric, Sums, share
from rankwise.runs.evaluations import Scores
from rankwise.runs.measured import LEVEL, Difference, Measured, Verdict

RESAMPLES, SEED = 2000, 0
QUANTILE = 1.959963984540054
TOGETHER = 20_000_000
"""Random numbers drawn at a time."""


def scores(metric: str, rows: Sequence[Sequence[float]]) -> Scores:
    return Scores(measured=measured(METRICS[metric], rows), sums=[list(row) for row in rows])


def measured(metric: Metric, rows: Sequence[Sequence[float]]) -> Measured:
    table = metric.table(_sorted(np.asarray(rows, dtype=np.float64)))
    value = float(metric.of(_total(table)))
    if metric.of is share and _hits(table):
        low, high = _wilson(value, len(table))
    else:
        low, high = _quantiles(_drawn(metric.of, table))
    return Measured(value=value, low=min(low, value), high=max(high, value))


def measured_share(hits: float, items: int) -> Measured | None:
    """Return a share of hits with Wilson's interval; None without items. Half a hit is one that is undecided."""
    if not items:
        return None
    low, high = _wilson(hits / items, items)
    return Measured(value=hits / items, low=min(low, hits / items), high=max(high, hits / items))


def measured_each(of: Callable[[Sums], Sums], rows: Sums) -> list[Measured]:
    """Bootstrap a formula that gives several values, from the items' sums; nan marks samples without a value."""
    table = _sorted(rows)
    values, drawn = of(_total(table)), _drawn(of, table)
    low, high = np.nanquantile(drawn, (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return [
        Measured(value=float(value), low=min(float(below), float(value)), high=max(float(above), float(value)))
        for value, below, above in zip(values, low, high, strict=True)
    ]


def difference(metric: Metric, a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Difference:
    """Compare b with a (b minus a); both have rows of the same items in the same order."""
    assert len(a) == len(b) > 0, "only equal items are compared"
    n, stored = len(a), len(a[0])
    rows = _sorted(np.hstack((np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))))
    together = metric.table(np.vstack((rows[:, :stored], rows[:, stored:])))  # so that both have the same columns
    table, width = np.hstack((together[:n], together[n:])), together.shape[1]

    def between(sums: Sums) -> Sums:
        return metric.of(sums[..., width:]) - metric.of(sums[..., :width])

    pair = Metric(between, more_is_better=metric.more_is_better)
    total = _total(table)
    result = float(between(total))
    hits = metric.of is share and width == 2 and _hits(table[:, :2]) and _hits(table[:, 2:])
    low, high = _paired_hits(table) if hits else _quantiles(_drawn(between, table))
    low, high, p = min(low, result), max(high, result), _swapped(pair, table, width, result)
    return Difference(
        a=float(metric.of(total[:width])), b=float(metric.of(total[width:])), difference=result, low=low, high=high,
        p=p, n=len(table), verdict=_verdict(metric, low, high, p),
    )  # fmt: skip


def _verdict(metric: Metric, low: float, high: float, p: float) -> Verdict:
    if p >= LEVEL or low <= 0 <= high:
        return "cannot tell"
    return "better" if (low > 0) == metric.more_is_better else "worse"


def _sorted(table: Sums) -> Sums:
    """Sort the rows, so that no draw depends on the order of the items."""
    return table[np.lexsort(table.T[::-1])]


def _total(table: Sums) -> Sums:
    """Sum exactly, independent of the order."""
    return np.array([math.fsum(column) for column in table.T])


def _hits(table: Sums) -> bool:
    return bool((table[:, 1] == 1).all() and np.isin(table[:, 0], (0.0, 1.0)).all())


def _wilson(value: float, n: int) -> tuple[float, float]:
    spread = QUANTILE**2 / n
    middle = (value + spread / 2) / (1 + spread)
    half = QUANTILE / (1 + spread) * math.sqrt(value * (1 - value) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _paired_hits(table: Sums) -> tuple[float, float]:
    change, n = table[:, 2] - table[:, 0], len(table) + 2
    gained, lost = float((change > 0).sum()), float((change < 0).sum())
    middle = (gained - lost) / n
    half = QUANTILE * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / n) / n
    return max(-1.0, middle - half), min(1.0, middle + half)


def _drawn(of: Callable[[Sums], Sums], table: Sums) -> Sums:
    """Compute a formula on RESAMPLES bootstrap samples of the items."""
    n = len(table)
    generator = np.random.default_rng(SEED)
    at_once = max(1, TOGETHER // n)
    values: list[Sums] = []
    for start in range(0, RESAMPLES, at_once):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(at_once, RESAMPLES - start))
        values.append(of(counts @ table))
    return np.concatenate(values)


def _swapped(pair: Metric, table: Sums, width: int, result: float) -> float:
    """Return the p-value: how often random swaps within pairs give a difference at least as large."""
    a, b = table[:, :width], table[:, width:]
    total, change = _total(table), b - a
    generator = np.random.default_rng(SEED + 1)
    at_once = max(1, TOGETHER // len(table))
    reached = 0
    for start in range(0, RESAMPLES, at_once):
        swaps = generator.integers(0, 2, size=(min(at_once, RESAMPLES - start), len(table))) @ change
        turned = np.hstack((total[:width] + swaps, total[width:] - swaps))
        reached += int((np.abs(pair.of(turned)) >= abs(result) * (1 - 1e-9) - 1e-12).sum())
    return (1 + reached) / (1 + RESAMPLES)


def _quantiles(values: Sums) -> tuple[float, float]:
    low, high = np.quantile(values, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)
