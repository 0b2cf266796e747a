"""The usable rows of one source: the numbers of their sequences, and what decides which become validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import TypeVar

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.data.duplicates import digest_of
from rankwise.data.hold_out import Candidates
from rankwise.data.image_report import SeenImage, overlap_of_images
from rankwise.data.labels import Labels
from rankwise.data.report import overlap_of
from rankwise.data.sources import Reading
from rankwise.runs.data_report import OverlapFacts
from rankwise.text.example import Example, ImageRecord

_Value = TypeVar("_Value")


@dataclass
class SourceRows:
    """Lists with one entry per row. Lists that are not needed are empty."""

    reading: Reading
    weight: float
    rows: list[range] = field(default_factory=list)
    """The numbers of each row's sequences."""
    prompts: list[str] = field(default_factory=list)
    """What rows with the same question share: its text, or the hash of an image's pixels."""
    images: list[SeenImage] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    label_of_row: list[str] = field(default_factory=list)
    apart: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """Whether each row is a validation row."""

    def add(self, row: Sequence[Example], sequences: range, image: ImageRecord | None, spec: DataConfig) -> None:
        self.rows.append(sequences)
        if image is not None:
            self.images.append(SeenImage(row[0].where, intern(row[0].messages[-1].content), image))
        if spec.held_out or spec.validation is not None:
            texts = (example.prompt_text for example in row)
            self.prompts.append("\n".join(texts) if image is None else image.content.hex())
        if spec.group is not None:
            self.groups.append(row[0].group)
        formats = {part.format for part in self.reading.parts} - {None}
        classification = bool(formats) and formats <= {"classification", "image"}
        self.label_of_row.append(self.labels.add(row, classification=classification))
        if self.labels.none:
            self.label_of_row.clear()

    def candidates(self, spec: DataConfig) -> Candidates:
        by_prompt = spec.held_out > 0 and spec.held_out_order == "seed" and spec.group is None
        prompts = [digest_of(text) for text in self.prompts] if by_prompt else []
        return Candidates(len(self.rows), self.label_of_row if self.labels else [], prompts, self.groups)

    def side(self, values: Sequence[_Value], *, apart: bool) -> list[_Value]:
        """The values of the validation rows, or those of the training rows."""
        return [value for value, out in zip(values, self.apart.tolist(), strict=True) if out == apart]

    def weighted(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the training sequences in one pass. A weight of 2.5 repeats each row twice, and a random half of
        the rows a third time."""
        rows = self.side(self.rows, apart=False)
        times = int(self.weight)
        drawn = rng.permutation(len(rows))[: round((self.weight - times) * len(rows))]
        return np.concatenate([np.tile(numbers_of(rows), times), numbers_of([rows[index] for index in sorted(drawn)])])

    def weighed_out(self) -> list[str]:
        rows = len(self.side(self.rows, apart=False))
        if rows < 1 or round(self.weight * rows):
            return []
        path = self.reading.source.path
        return [f"{path}: the weight {self.weight:g} leaves none of its {rows:,} rows for training."]


def overlap_between(trained: Sequence[SourceRows], measured: Sequence[SourceRows]) -> OverlapFacts:
    """How many validation rows, held out or of the validation source, are also in the training rows."""
    if any(source.images for source in trained):
        images = [image for source in trained for image in source.side(source.images, apart=True)]
        images += [image for source in measured for image in source.images]
        return overlap_of_images(
            images, [image for source in trained for image in source.side(source.images, apart=False)]
        )
    texts = [text for source in trained for text in source.side(source.prompts, apart=True)]
    texts += [text for source in measured for text in source.prompts]
    return overlap_of(texts, (source.side(source.prompts, apart=False) for source in trained))


def numbers_of(rows: Sequence[range]) -> np.ndarray:
    return np.array([number for row in rows for number in row], np.int64)
