"""What is said of images that were read: sizes, what was converted, and copies, also those with two labels.

An image that stands under two labels is wrong in at least one place, and an image that is in the training rows and in
the validation rows makes the measured accuracy too high. Both are frequent, and nobody sees them by looking.

Exact copies have the same pixels. Near ones have perceptual hashes that differ in at most 3 of 64 bits. The hash is cut
into four bands of 16 bits, so that near images agree in at least one band, and only images that agree in a band are
compared: a hundred thousand take a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from rankwise.rows.report.duplicates import Duplicates, near_by_bands
from rankwise.rows.text.example import ImageRecord
from rankwise.runs.data_report import OverlapFacts
from rankwise.runs.row_facts import ImageChange, ImageCopy, ImageFacts

BANDS, BITS = 4, 16
MOST_DIFFERENT = BANDS - 1
MOST_LISTED, EXAMPLES = 20, 3


class ImageIndex:
    """The hashes of a stream of images."""

    def __init__(self, records: Sequence[ImageRecord] = ()) -> None:
        self._length = 0
        self._rows: dict[bytes, int] = {}  # content of a distinct image -> its row below
        self._firsts = array("q")  # row -> the position at which the image was first seen
        self._hashes = array("Q")
        self._flat: list[bool] = []  # row -> whether it has no structure that could be compared
        self._copies: dict[int, int] = {}  # position of a repeated image -> row
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        return self._length

    def add(self, record: ImageRecord) -> None:
        row = self._rows.setdefault(record.content, len(self._firsts))
        if row < len(self._firsts):
            self._copies[self._length] = row
        else:
            self._firsts.append(self._length)
            self._hashes.append(record.perceptual or 0)
            self._flat.append(record.perceptual is None)
        self._length += 1

    def duplicates(self) -> Duplicates:
        """Duplicates within the stream."""
        near = _near(self, self)
        return Duplicates(
            exact={position: self._firsts[row] for position, row in self._copies.items()},
            near={self._firsts[row]: self._firsts[earlier] for row, earlier in near.items()},
        )

    def overlap(self, other: ImageIndex) -> Duplicates:
        """Images of this stream that are also in the other; the positions they lead to are the other's."""
        near, exact, nearly = _near(self, other), dict[int, int](), dict[int, int]()
        same = {row: other._rows[content] for content, row in self._rows.items() if content in other._rows}
        for position, row in sorted([*((first, row) for row, first in enumerate(self._firsts)), *self._copies.items()]):
            if row in same:
                exact[position] = other._firsts[same[row]]
            elif row in near:
                nearly[position] = other._firsts[near[row]]
        return Duplicates(exact, nearly)

    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows whose hashes can be compared, and their hashes."""
        rows = np.flatnonzero(~np.array(self._flat, bool))
        return rows, np.frombuffer(self._hashes, np.uint64)[rows] if len(rows) else np.empty(0, np.uint64)


def _near(mine: ImageIndex, theirs: ImageIndex) -> dict[int, int]:
    """Row of `mine` -> a row of `theirs` that is near; an earlier one if both are the same index."""
    rows, hashes = mine.compared()
    their_rows, their_hashes = theirs.compared()

    def keys(band: int) -> tuple[np.ndarray, np.ndarray | None]:
        return _band(hashes, band), None if mine is theirs else _band(their_hashes, band)

    def are_near(of_mine: np.ndarray, of_theirs: np.ndarray) -> np.ndarray:
        return np.bitwise_count(hashes[of_mine] ^ their_hashes[of_theirs]) <= MOST_DIFFERENT

    pairs = near_by_bands(len(hashes), BANDS, keys, are_near)
    return {int(rows[one]): int(their_rows[other]) for one, other in pairs.items()}


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return (hashes >> np.uint64(BITS * band)) & np.uint64(2**BITS - 1)


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
