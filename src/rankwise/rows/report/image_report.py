"""What is said of images that were read: sizes, what was converted, and copies, also those with two labels.

An image that stands under two labels is wrong in at least one place, and an image that is in the training rows and in
the validation rows makes the measured accuracy too high. Both are frequent, and nobody sees them by looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from rankwise.rows.report.duplicates import Duplicates, ImageIndex, Pairs
from rankwise.rows.text.example import ImageRecord
from rankwise.runs.data_report import OverlapFacts
from rankwise.runs.row_facts import ImageChange, ImageCopy, ImageFacts

MOST_LISTED, EXAMPLES = 20, 3


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An image that can be trained on."""

    where: str
    label: str
    record: ImageRecord


@dataclass(frozen=True)
class Findings:
    """What all images together show."""

    facts: ImageFacts
    duplicates: Duplicates
    warnings: tuple[str, ...]


def findings_of(images: Sequence[SeenImage], passed_over: Sequence[str]) -> Findings:
    """Compare all images with each other; there is at least one."""
    duplicates = ImageIndex([image.record for image in images]).repeats()
    exact = _pairs(images, images, duplicates.exact)
    two_labels = [(one, first) for one, first in exact if one.label != first.label]
    sizes = [(image.record.width, image.record.height) for image in images]
    facts = ImageFacts(
        images=len(images),
        smallest=min(sizes, key=_area), largest=max(sizes, key=_area),
        median=(median_low(width for width, _ in sizes), median_low(height for _, height in sizes)),
        landscape=sum(width > height for width, height in sizes),
        portrait=sum(width < height for width, height in sizes),
        square=sum(width == height for width, height in sizes),
        changes=_changes(images),
        copies=_copies(exact),
        near_copies=_copies(_pairs(images, images, duplicates.near)),
        two_labels=len(two_labels), two_labels_copies=_copies(two_labels),
        passed_over=len(passed_over), passed_over_files=tuple(passed_over[:MOST_LISTED]),
    )  # fmt: skip
    return Findings(facts, duplicates, tuple(_warnings(facts, *duplicates.counts)))


def overlap_of_images(measured: Sequence[SeenImage], trained: Sequence[SeenImage]) -> OverlapFacts:
    """How many validation images are also training images."""
    of_measured, of_trained = (ImageIndex([image.record for image in images]) for images in (measured, trained))
    shared = of_measured.overlap(np.arange(len(measured)), of_trained, np.arange(len(trained)))
    exact, near = shared.counts
    first = _copies([*_pairs(measured, trained, shared.exact), *_pairs(measured, trained, shared.near)])
    return OverlapFacts(exact=exact, near=near, of=len(measured), images=first or None)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _changes(images: Iterable[SeenImage]) -> tuple[ImageChange, ...]:
    """The most frequent first."""
    changed: dict[str, list[str]] = {}
    for image in images:
        for note in image.record.notes:
            changed.setdefault(note, []).append(image.where)
    by_count = sorted(changed.items(), key=lambda item: -len(item[1]))
    return tuple(ImageChange(what=what, images=len(of), first=tuple(of[:EXAMPLES])) for what, of in by_count)


def _pairs(images: Sequence[SeenImage], others: Sequence[SeenImage], pairs: Pairs) -> list[tuple[SeenImage, SeenImage]]:
    """Images, each with one of the others."""
    return [(images[one], others[other]) for one, other in zip(*map(np.ndarray.tolist, pairs), strict=True)]


def _copies(pairs: Sequence[tuple[SeenImage, SeenImage]]) -> tuple[ImageCopy, ...]:
    """The first of them."""
    return tuple(
        ImageCopy(image=one.where, label=one.label, earlier=other.where, earlier_label=other.label)
        for one, other in pairs[:MOST_LISTED]
    )


def _warnings(facts: ImageFacts, exact: int, near: int) -> Iterable[str]:
    if facts.two_labels:
        yield (
            f"images with the same pixels as an earlier image, but another label: {facts.two_labels:,}, such as "
            f"{facts.two_labels_copies[0].describe()}"
        )
    if exact:
        yield (f"images with the same pixels as an earlier image: {exact:,}, such as {facts.copies[0].describe()}")
    if near:
        yield (
            f"images that look nearly the same as an earlier image: {near:,}, such as {facts.near_copies[0].describe()}"
        )
