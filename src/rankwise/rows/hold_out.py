"""The usable rows of each source, and which of them become validation rows: at random by the seed, in proportion to
sources and labels, and with whole groups.

A unit is a set of rows that stay together, in training or in validation: the rows of one group (data.group), or without
groups the rows with the same prompt. Units are drawn in random order, and a unit is taken while its source and label
still need that many rows. Rows with the same prompt are separated only if N cannot be reached otherwise. Groups are
never separated, so with groups N is approximate. `last` takes the last rows of each source.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import TypeVar

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.rows.forms.labels import Labels
from rankwise.rows.report.duplicates import TextIndex
from rankwise.rows.report.image_report import SeenImage, overlap_of_images
from rankwise.rows.report.raw_rows import RawReport
from rankwise.rows.text.example import Example, ImageRecord
from rankwise.runs.data_report import OverlapFacts
from rankwise.runs.row_facts import HoldOutFacts

MOST_LABELS, MOST_PLACES = 100, 10_000
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Candidates:
    """The usable rows of one source. Each sequence has one entry per row, or is empty if it is not needed."""

    size: int
    labels: Sequence[str]
    prompts: np.ndarray
    """A number for each question."""
    groups: np.ndarray
    """A number for each group, negative where a row has none."""


def hold_out(sources: Sequence[Candidates], config: DataConfig) -> list[np.ndarray]:
    """A boolean array for each source: whether each of its rows becomes a validation row."""
    sizes = [source.size for source in sources]
    count = min(config.held_out_of(sum(sizes)), sum(sizes))
    if not count:
        return [np.zeros(size, bool) for size in sizes]
    if config.held_out_order == "last":
        return [np.arange(size) >= size - share for size, share in zip(sizes, shares(count, sizes), strict=True)]
    chosen = _by_seed(sources, count, config)
    return np.split(chosen, np.cumsum(sizes)[:-1])


def facts_of(sources: Sequence[Candidates], masks: Sequence[np.ndarray], config: DataConfig) -> HoldOutFacts | None:
    """Counts of the validation rows, for the data report."""
    count = int(sum(one.sum() for one in masks))
    if not count:
        return None
    held_out = [(source, one.nonzero()[0].tolist()) for source, one in zip(sources, masks, strict=True)]
    labelled = any(source.labels for source in sources)
    labels = Counter(source.labels[row] for source, rows in held_out if source.labels for row in rows)
    groups = _groups([source.groups[rows] for source, rows in held_out if config.group])
    every = _groups([source.groups for source in sources])
    size = sum(source.size for source in sources)
    return HoldOutFacts(
        order=config.held_out_order, requested=config.held_out_of(size), rows=count, of=size,
        by_default=config.held_out == "auto",
        seed=config.seed if config.held_out_order == "seed" else None,
        labels=dict(labels.most_common(MOST_LABELS)) if labelled else None,
        group=config.group, groups=groups if config.group else None, groups_in_all=every if config.group else None,
    )  # fmt: skip


def _groups(parts: Sequence[np.ndarray]) -> int:
    """How many groups some rows have."""
    every = np.concatenate([np.empty(0, np.int64), *parts])
    return len(np.unique(every[every >= 0]))


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


def _by_seed(sources: Sequence[Candidates], count: int, config: DataConfig) -> np.ndarray:
    strata, names = _strata(sources)
    order = np.random.default_rng([config.seed, 3]).permutation(len(strata))
    units = _Units(_numbered([source.groups if config.group else source.prompts for source in sources]), order)
    sizes = np.bincount(strata, minlength=len(names)).tolist()
    quotas = _quotas(sources, dict(zip(names, sizes, strict=True)), count)
    draw = _Draw(np.zeros(len(strata), bool), strata, [quotas[name] for name in names], count)
    rows = _Units(None, order)
    for parts in [units] if config.group else [units, rows]:
        draw.by_share(parts)
    for parts in [units] if config.group else [units, rows]:
        draw.whatever_fits(parts)
    if config.group:
        draw.nearest(units)
    return draw.chosen


def _strata(sources: Sequence[Candidates]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """For each row the number of its source and label among those that are returned too."""
    numbers: dict[tuple[int, str], int] = {}
    strata = np.empty(sum(source.size for source in sources), np.int32)
    begin = 0
    for source_number, source in enumerate(sources):
        rows = strata[begin : begin + source.size]
        if source.size and not source.labels:
            rows[:] = numbers.setdefault((source_number, ""), len(numbers))
        elif source.size:
            rows[:] = [numbers.setdefault((source_number, label), len(numbers)) for label in source.labels]
        begin += source.size
    return strata, list(numbers)


def _numbered(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """A number for each row of all sources; a row without a value has its own. None where there are none."""
    every = np.concatenate([np.empty(0, np.int64), *parts])
    alone = np.flatnonzero(every < 0)
    every[alone] = every.max(initial=0) + 1 + np.arange(len(alone))
    return every if len(every) else None


class _Units:
    """Rows with the same number, in the order of their first rows; without numbers each row alone."""

    def __init__(self, numbers: np.ndarray | None, order: np.ndarray) -> None:
        self._rows = order
        self._begins = np.arange(len(order) + 1)
        self._turns = np.arange(len(order))
        if numbers is not None:
            together = np.argsort(numbers[order], kind="stable")
            self._rows = order[together]
            changes = np.flatnonzero(np.diff(numbers[self._rows])) + 1
            self._begins = np.concatenate([[0], changes, [len(order)]])
            self._turns = np.argsort(together[self._begins[:-1]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._rows[self._begins[turn] : self._begins[turn + 1]] for turn in self._turns)


def _quotas(
    sources: Sequence[Candidates], sizes: Mapping[tuple[int, str], int], count: int
) -> dict[tuple[int, str], int]:
    """Number of validation rows of each label of each source. The only row with a label is left for training, and a
    label with two or more has one at least, as far as there are so many validation rows."""
    quotas: dict[tuple[int, str], int] = {}
    for number, share in enumerate(shares(count, [source.size for source in sources])):
        own = [stratum for stratum in sizes if stratum[0] == number]
        common = [sizes[stratum] if sizes[stratum] > 1 or len(own) == 1 else 0 for stratum in own]
        quotas |= zip(own, _one_of_each(shares(min(share, sum(common)), common), common), strict=True)
    return quotas


def _one_of_each(quotas: list[int], sizes: list[int]) -> list[int]:
    """Labels that would have none get one, in the order of their sizes, from those that have most."""
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        most = max(quotas)
        if sizes[at] and not quotas[at] and most > 1:
            quotas[quotas.index(most)] -= 1
            quotas[at] = 1
    return quotas


@dataclass
class _Draw:
    chosen: np.ndarray
    strata: np.ndarray
    lacking: list[int]
    """How many validation rows each stratum still needs."""
    left: int

    def by_share(self, units: Iterable[np.ndarray]) -> None:
        lacking = sum(self.lacking)
        for unit in units if lacking else ():
            stratum = int(self.strata[unit[0]])
            if len(unit) > 1:
                stratum = Counter(self.strata[unit].tolist()).most_common(1)[0][0]
            if len(unit) <= self.lacking[stratum] and not self.chosen[unit].any():
                self.lacking[stratum] -= len(unit)
                self._take(unit)
                if not (lacking := lacking - len(unit)):
                    return

    def whatever_fits(self, units: Iterable[np.ndarray]) -> None:
        for unit in units if self.left else ():
            if len(unit) <= self.left and not self.chosen[unit].any():
                self._take(unit)
                if not self.left:
                    return

    def nearest(self, units: Iterable[np.ndarray]) -> None:
        """Take one more group if that comes nearer to N, or if nothing is held out yet, and another group remains."""
        rest = sorted((unit for unit in units if not self.chosen[unit[0]]), key=len)
        if len(rest) > 1 and (len(rest[0]) < 2 * self.left or not self.chosen.any()):
            self._take(rest[0])

    def _take(self, unit: np.ndarray) -> None:
        self.chosen[unit] = True
        self.left -= len(unit)


@dataclass
class SourceRows:
    """`begin` is the number of its first sequence, and `question` that of its first row among the questions of all."""

    raw: RawReport
    weight: float
    begin: int = 0
    question: int = 0
    counts: array[int] = field(default_factory=lambda: array("i"))
    """Number of sequences of each row."""
    images: list[SeenImage] = field(default_factory=list)
    groups: array[int] = field(default_factory=lambda: array("q"))
    """The number of each row's group, negative for a row that is a group of its own. Empty if groups are not needed."""
    labels: Labels = field(default_factory=Labels)
    places: list[str] = field(default_factory=list)
    """`file:line` of the first rows."""
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """Whether each row is a validation row."""

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, row: Sequence[Example], sequences: int, image: ImageRecord | None, *, classification: bool) -> None:
        """Add the row that follows, with the number of its sequences and what is known of its image."""
        self.counts.append(sequences)
        if len(self.places) < MOST_PLACES:
            self.places.append(row[0].where)
        if image is not None:
            self.images.append(SeenImage(row[0].where, intern(row[0].messages[-1].content), image))
        self.labels.add(row, classification=classification)

    def candidates(self, questions: np.ndarray | None) -> Candidates:
        none = np.empty(0, np.int64)
        own = questions[self.question : self.question + len(self)] if questions is not None else none
        groups = np.frombuffer(self.groups, np.int64) if self.groups else none
        return Candidates(len(self), self.labels.of_rows if self.labels else (), own, groups)

    @property
    def starts(self) -> np.ndarray:
        """(N + 1,): row n has the sequences starts[n] … starts[n + 1] - 1."""
        return self.begin + np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the sequences of some rows."""
        starts = self.starts
        firsts, counts = starts[rows], starts[rows + 1] - starts[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(firsts, counts) + within

    def rows(self, *, held_out: bool) -> np.ndarray:
        """The validation rows, or the training rows."""
        return np.flatnonzero(self.held_out == held_out)

    def questions(self, *, held_out: bool) -> np.ndarray:
        """The numbers of their questions."""
        return self.question + self.rows(held_out=held_out)

    def side(self, values: Sequence[_Value], *, held_out: bool) -> list[_Value]:
        """The values of the validation rows, or those of the training rows."""
        return [value for value, out in zip(values, self.held_out.tolist(), strict=True) if out == held_out]

    def weighted(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the training sequences in one pass. A weight of 2.5 repeats each row twice, and a random half of
        the rows a third time."""
        rows = self.rows(held_out=False)
        times = int(self.weight)
        drawn = rng.permutation(len(rows))[: round((self.weight - times) * len(rows))]
        return np.concatenate([np.tile(self.numbers(rows), times), self.numbers(rows[np.sort(drawn)])])

    def weighed_out(self) -> list[str]:
        rows = len(self.rows(held_out=False))
        if rows < 1 or round(self.weight * rows):
            return []
        path = self.raw.reading.source.path
        return [f"{path}: the weight {self.weight:g} leaves none of its {rows:,} rows for training."]


def overlap_between(
    prompts: TextIndex, trained: Sequence[SourceRows], validation: Sequence[SourceRows]
) -> OverlapFacts:
    """How many validation rows, held out or of the validation source, are also in the training rows."""
    if any(source.images for source in trained):
        images = [image for source in trained for image in source.side(source.images, held_out=True)]
        images += [image for source in validation for image in source.images]
        return overlap_of_images(
            images, [image for source in trained for image in source.side(source.images, held_out=False)]
        )
    none = np.empty(0, np.int64)
    others = np.concatenate([none, *(source.questions(held_out=False) for source in trained)])
    own = np.concatenate([
        none, *(source.questions(held_out=True) for source in trained),
        *(source.question + np.arange(len(source)) for source in validation),
    ])  # fmt: skip
    found = prompts.overlap(own, prompts, others)
    numbers = sorted([*found.exact[0].tolist(), *found.near[0].tolist()])
    places = [source.places[number - source.question] for number in numbers for source in (*trained, *validation)
              if 0 <= number - source.question < len(source.places)]  # fmt: skip
    exact, near = found.counts
    return OverlapFacts(exact=exact, near=near, of=len(own), example=", ".join(places[:3]))
