"""Choose the validation rows: at random by the seed, in proportion to sources and labels, and with whole groups.

A unit is a set of rows that stay together, in training or in validation: the rows of one group (data.group), or without
groups the rows with the same prompt. Units are drawn in random order, and a unit is taken while its source and label
still need that many rows. Rows with the same prompt are separated only if N cannot be reached otherwise. Groups are
never separated, so with groups N is approximate. `last` takes the last rows of each source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.runs.data_report import HoldOutFacts

MOST_LABELS = 100


@dataclass(frozen=True)
class Candidates:
    """The usable rows of one source. Each list has one entry per row, or is empty if it is not needed."""

    size: int
    labels: Sequence[str]
    prompts: Sequence[Hashable]
    groups: Sequence[str | None]


def hold_out(sources: Sequence[Candidates], spec: DataConfig) -> list[np.ndarray]:
    """A boolean array for each source: whether each of its rows becomes a validation row."""
    sizes = [source.size for source in sources]
    count = min(spec.held_out, sum(sizes))
    if not count:
        return [np.zeros(size, bool) for size in sizes]
    if spec.held_out_order == "last":
        return [np.arange(size) >= size - share for size, share in zip(sizes, shares(count, sizes), strict=True)]
    chosen = _by_seed(sources, count, spec)
    return np.split(chosen, np.cumsum(sizes)[:-1])


def facts_of(sources: Sequence[Candidates], apart: Sequence[np.ndarray], spec: DataConfig) -> HoldOutFacts | None:
    """Counts of the validation rows, for the data report."""
    count = int(sum(one.sum() for one in apart))
    if not count:
        return None
    held_out = [(source, one.nonzero()[0].tolist()) for source, one in zip(sources, apart, strict=True)]
    labelled = any(source.labels for source in sources)
    labels = Counter(source.labels[row] for source, rows in held_out if source.labels for row in rows)
    groups = {source.groups[row] for source, rows in held_out if spec.group for row in rows} - {None}
    every = {group for source in sources for group in source.groups} - {None}
    return HoldOutFacts(
        order=spec.held_out_order, requested=spec.held_out, rows=count, of=sum(source.size for source in sources),
        seed=spec.seed if spec.held_out_order == "seed" else None,
        labels=dict(labels.most_common(MOST_LABELS)) if labelled else None,
        group=spec.group, groups=len(groups) if spec.group else None, groups_in_all=len(every) if spec.group else None,
    )  # fmt: skip


def shares(count: int, sizes: Sequence[int]) -> list[int]:
    """Divide `count` in proportion to `sizes`, by the largest remainders."""
    total = sum(sizes)
    if not total:
        return [0 for _ in sizes]
    parts = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (-(count * sizes[index] % total), -sizes[index]))
    for index in by_remainder[: count - sum(parts)]:
        parts[index] += 1
    return parts


def _by_seed(sources: Sequence[Candidates], count: int, spec: DataConfig) -> np.ndarray:
    strata = [(number, label) for number, source in enumerate(sources) for label in source.labels or [""] * source.size]
    total = len(strata)
    order = np.random.default_rng([spec.seed, 3]).permutation(total).tolist()
    units = _units([value for source in sources for value in (source.groups if spec.group else source.prompts)], order)
    lacking = _quotas(sources, strata, count)
    draw = _Draw(np.zeros(total, bool), strata, lacking, count)
    rows = [[row] for row in order]
    for parts in [units] if spec.group else [units, rows]:
        draw.by_share(parts)
    for parts in [units] if spec.group else [units, rows]:
        draw.whatever_fits(parts)
    if spec.group:
        draw.nearest(units)
    return draw.chosen


def _units(values: Sequence[Hashable], order: Sequence[int]) -> list[list[int]]:
    """Group rows with the same value, in the order of their first rows. A row without a value is a unit alone."""
    if not values:
        return [[row] for row in order]
    units: dict[Hashable, list[int]] = {}
    for row in order:
        value = values[row]
        units.setdefault((row,) if value is None else value, []).append(row)
    return list(units.values())


def _quotas(sources: Sequence[Candidates], strata: Sequence[tuple[int, str]], count: int) -> dict[tuple[int, str], int]:
    """Number of validation rows of each label of each source. The only row with a label is left for training."""
    sizes = Counter(strata)
    quotas: dict[tuple[int, str], int] = {}
    for number, share in enumerate(shares(count, [source.size for source in sources])):
        own = [stratum for stratum in sizes if stratum[0] == number]
        common = [sizes[stratum] if sizes[stratum] > 1 or len(own) == 1 else 0 for stratum in own]
        quotas |= zip(own, shares(min(share, sum(common)), common), strict=True)
    return quotas


@dataclass
class _Draw:
    chosen: np.ndarray
    strata: Sequence[tuple[int, str]]
    lacking: dict[tuple[int, str], int]
    left: int

    def by_share(self, units: Sequence[list[int]]) -> None:
        for unit in units:
            stratum = self.strata[unit[0]]
            if len(unit) > 1:
                stratum = Counter(self.strata[row] for row in unit).most_common(1)[0][0]
            if len(unit) <= self.lacking[stratum] and not self.chosen[unit].any():
                self.lacking[stratum] -= len(unit)
                self._take(unit)

    def whatever_fits(self, units: Sequence[list[int]]) -> None:
        for unit in units:
            if len(unit) <= self.left and not self.chosen[unit].any():
                self._take(unit)

    def nearest(self, units: Sequence[list[int]]) -> None:
        """Take one more group if that comes nearer to N, or if nothing is held out yet, and another group remains."""
        rest = sorted((unit for unit in units if not self.chosen[unit[0]]), key=len)
        if len(rest) > 1 and (len(rest[0]) < 2 * self.left or not self.chosen.any()):
            self._take(rest[0])

    def _take(self, unit: list[int]) -> None:
        self.chosen[unit] = True
        self.left -= len(unit)
