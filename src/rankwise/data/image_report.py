"""What is said of images that were read: sizes, what was converted, and copies, also those with two labels.

An image that stands under two labels is wrong in at least one place, and an image that is in the training rows and in
the validation rows makes the measured accuracy too high. Both are frequent, and nobody sees them by looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from rankwise.data.duplicates import Duplicates
from rankwise.data.image_index import ImageIndex
from rankwise.runs.data_report import OverlapFacts
from rankwise.runs.row_facts import ImageChange, ImageCopy, ImageFacts
from rankwise.text.example import ImageRecord

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

    @property
    def copies(self) -> tuple[int, int]:
        """How many images are the same as an earlier one, and how many look nearly the same."""
        return len(self.duplicates.exact), len(self.duplicates.near)


def findings_of(images: Sequence[SeenImage], passed_over: Sequence[str]) -> Findings:
    """Compare all images with each other; there is at least one."""
    duplicates = ImageIndex([image.record for image in images]).duplicates()
    two_labels = {at: first for at, first in duplicates.exact.items() if images[at].label != images[first].label}
    sizes = [(image.record.width, image.record.height) for image in images]
    facts = ImageFacts(
        images=len(images),
        smallest=min(sizes, key=_area), largest=max(sizes, key=_area),
        median=(median_low(width for width, _ in sizes), median_low(height for _, height in sizes)),
        landscape=sum(width > height for width, height in sizes),
        portrait=sum(width < height for width, height in sizes),
        square=sum(width == height for width, height in sizes),
        changes=_changes(images),
        copies=_copies(images, images, duplicates.exact),
        near_copies=_copies(images, images, duplicates.near),
        two_labels=len(two_labels), two_labels_copies=_copies(images, images, two_labels),
        passed_over=len(passed_over), passed_over_files=tuple(passed_over[:MOST_LISTED]),
    )  # fmt: skip
    return Findings(facts, duplicates, tuple(_warnings(facts, duplicates)))


def overlap_of_images(measured: Sequence[SeenImage], trained: Sequence[SeenImage]) -> OverlapFacts:
    """How many validation images are also training images."""
    of_measured, of_trained = (ImageIndex([image.record for image in images]) for images in (measured, trained))
    shared = of_measured.overlap(of_trained)
    first = _copies(measured, trained, shared.exact) + _copies(measured, trained, shared.near)
    return OverlapFacts(
        exact=len(shared.exact), near=len(shared.near), of=len(measured), images=first[:MOST_LISTED] or None
    )


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


def _copies(
    images: Sequence[SeenImage], others: Sequence[SeenImage], pairs: Mapping[int, int]
) -> tuple[ImageCopy, ...]:
    """The first pairs of an image and one of the others."""
    listed = [(images[one], others[other]) for one, other in sorted(pairs.items())[:MOST_LISTED]]
    return tuple(
        ImageCopy(image=one.where, label=one.label, earlier=other.where, earlier_label=other.label)
        for one, other in listed
    )


def _warnings(facts: ImageFacts, duplicates: Duplicates) -> Iterable[str]:
    if facts.two_labels:
        yield (
            f"images with the same pixels as an earlier image, but another label: {facts.two_labels:,}, such as "
            f"{facts.two_labels_copies[0].describe()}"
        )
    if duplicates.exact:
        yield (
            f"images with the same pixels as an earlier image: {len(duplicates.exact):,}, such as "
            f"{facts.copies[0].describe()}"
        )
    if duplicates.near:
        yield (
            f"images that look nearly the same as an earlier image: {len(duplicates.near):,}, such as "
            f"{facts.near_copies[0].describe()}"
        )
