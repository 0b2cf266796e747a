"""The usable rows of one source: the numbers of their sequences, and what decides which become validation rows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import TypeVar

import numpy as np

from rankwise.data.duplicates import TextIndex, overlap
from rankwise.data.hold_out import Candidates
from rankwise.data.image_report import SeenImage, overlap_of_images
from rankwise.data.labels import Labels
from rankwise.data.sources import Reading
from rankwise.runs.data_report import OverlapFacts
from rankwise.text.example import Example, ImageRecord

_Value = TypeVar("_Value")


@dataclass
class SourceRows:
    """`begin` is the number of its first sequence, and `question` that of its first row among the questions of all."""

    reading: Reading
    weight: float
    begin: int = 0
    question: int = 0
    counts: array[int] = field(default_factory=lambda: array("i"))
    """Number of sequences of each row."""
    images: list[SeenImage] = field(default_factory=list)
    groups: array[int] = field(default_factory=lambda: array("q"))
    """Of each row a number of its group, negative and its own where it has none. Empty if not needed."""
    labels: Labels = field(default_factory=Labels)
    apart: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """Whether each row is a validation row."""

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, row: Sequence[Example], sequences: int, image: ImageRecord | None, *, classification: bool) -> None:
        """Add the row that follows, with the number of its sequences and what is known of its image."""
        self.counts.append(sequences)
        if image is not None:
            self.images.append(SeenImage(row[0].where, intern(row[0].messages[-1].content), image))
        self.labels.add(row, classification=classification)

    def candidates(self, questions: np.ndarray | None) -> Candidates:
        own = questions[self.question : self.question + len(self)] if questions is not None else ()
        groups = np.frombuffer(self.groups, np.int64) if self.groups else ()
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

    def rows(self, *, apart: bool) -> np.ndarray:
        """The validation rows, or the training rows."""
        return np.flatnonzero(self.apart == apart)

    def questions(self, *, apart: bool) -> np.ndarray:
        """The numbers of their questions."""
        return self.question + self.rows(apart=apart)

    def side(self, values: Sequence[_Value], *, apart: bool) -> list[_Value]:
        """The values of the validation rows, or those of the training rows."""
        return [value for value, out in zip(values, self.apart.tolist(), strict=True) if out == apart]

    def weighted(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the training sequences in one pass. A weight of 2.5 repeats each row twice, and a random half of
        the rows a third time."""
        rows = self.rows(apart=False)
        times = int(self.weight)
        drawn = rng.permutation(len(rows))[: round((self.weight - times) * len(rows))]
        return np.concatenate([np.tile(self.numbers(rows), times), self.numbers(rows[np.sort(drawn)])])

    def weighed_out(self) -> list[str]:
        rows = len(self.rows(apart=False))
        if rows < 1 or round(self.weight * rows):
            return []
        path = self.reading.source.path
        return [f"{path}: the weight {self.weight:g} leaves none of its {rows:,} rows for training."]


def overlap_between(prompts: TextIndex, trained: Sequence[SourceRows], measured: Sequence[SourceRows]) -> OverlapFacts:
    """How many validation rows, held out or of the validation source, are also in the training rows."""
    if any(source.images for source in trained):
        images = [image for source in trained for image in source.side(source.images, apart=True)]
        images += [image for source in measured for image in source.images]
        return overlap_of_images(
            images, [image for source in trained for image in source.side(source.images, apart=False)]
        )
    none = np.empty(0, np.int64)
    others = np.concatenate([none, *(source.questions(apart=False) for source in trained)])
    own = np.concatenate([
        none, *(source.questions(apart=True) for source in trained),
        *(source.question + np.arange(len(source)) for source in measured),
    ])  # fmt: skip
    exact, near = overlap(prompts, own, prompts, others).counts
    return OverlapFacts(exact=exact, near=near, of=len(own))
