"""What a data report says about images: their sizes, what was converted, and copies."""

from __future__ import annotations

from rankwise.config.base import Config
from rankwise.errors import one_line, some

Size = tuple[int, int]
"""Width and height."""


class ImageChange(Config):
    """What was changed in some images when they were decoded."""

    what: str
    images: int
    first: tuple[str, ...]


class ImageCopy(Config):
    """An image, and an earlier one that has the same pixels or looks nearly the same."""

    image: str
    label: str
    earlier: str
    earlier_label: str

    def describe(self) -> str:
        return f"{self.image} ({one_line(self.label)}) and {self.earlier} ({one_line(self.earlier_label)})"


class ImageFacts(Config):
    """The decoded images of the training data, validation images that are held out from it included."""

    images: int
    smallest: Size
    """Width and height of the image with the fewest pixels."""
    median: Size
    """The median width and the median height."""
    largest: Size
    landscape: int
    """Images that are wider than high."""
    portrait: int
    square: int
    changes: tuple[ImageChange, ...] = ()
    copies: tuple[ImageCopy, ...] = ()
    """The first twenty images with the same pixels as an earlier one. `duplicates` counts all."""
    near_copies: tuple[ImageCopy, ...] = ()
    """The first twenty that look nearly the same. `near_duplicates` counts all."""
    two_labels: int = 0
    """Images with the same pixels as an earlier image with another label."""
    two_labels_copies: tuple[ImageCopy, ...] = ()
    """The first twenty of them."""
    passed_over: int = 0
    """Files in the folders of images that are no images, or are hidden."""
    passed_over_files: tuple[str, ...] = ()
    """The first twenty of them."""

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line of the report."""
        sizes = f"smallest {_size(self.smallest)}, median {_size(self.median)}, largest {_size(self.largest)}"
        if self.smallest == self.largest:
            sizes = f"all {_size(self.smallest)}"
        shapes = {"wide": self.landscape, "high": self.portrait, "square": self.square}
        if max(shapes.values()) < self.images:
            sizes += "; " + ", ".join(f"{count / self.images:.0%} {shape}" for shape, count in shapes.items() if count)
        lines = [("image sizes", sizes)]
        for change in self.changes:
            lines.append(("images", f"{change.images:,} {change.what}, such as {some(change.first, 3)}"))
        if self.passed_over:
            names = some(self.passed_over_files, 5) if self.passed_over <= 5 else ", ".join(self.passed_over_files[:5])
            more = f" and {self.passed_over - 5:,} more" if self.passed_over > 5 else ""
            lines.append(("no images", f"{self.passed_over:,} files are passed over: {names}{more}"))
        return lines


def _size(size: Size) -> str:
    return f"{size[0]:,} x {size[1]:,}"
