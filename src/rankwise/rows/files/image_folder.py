"""Folders: which of their files are those of a split, and images whose label is the name of their folder.

    pets/cat/1.jpg            label cat
    pets/train/cat/1.jpg      label cat, split train (a folder above the class folders names a split)
    pets/1.jpg                no label: good for predictions, and not for training

Images are the files with an image's suffix. What else is in the folder is passed over and listed in the data report.
Symbolic links to folders are not followed; each is a bad row, and so is a link to a file outside.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from rankwise.errors import DataError, some
from rankwise.rows.files.columnar import Record, Seen
from rankwise.rows.files.licences import FILES, READMES
from rankwise.rows.forms.image_rows import IMAGE_SUFFIXES
from rankwise.rows.text.text_encoding import is_unicode
from rankwise.system.files import sha256_of

SPLITS = {
    "train": "train", "training": "train", "valid": "validation", "validation": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "evaluation", "evaluation": "evaluation",
}  # fmt: skip
"""Words in file names, and the split that they mean."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
OF_MAC = "__MACOSX"


def chosen_files(files: list[Path], folder: Path, wanted_split: str | None) -> list[Path]:
    """The files of the wanted split.

    Files named with exactly this word come first, then files named with another word for the same split. Without a
    wanted split, these are the training files, or if there are none, the files that name no split.
    """
    words = {path: split_word(path, folder) for path in files}
    splits = {path: _known(word) for path, word in words.items()}
    if wanted_split is None:
        return [path for path in files if splits[path] == "train"] or [path for path in files if splits[path] is None]
    if _known(wanted_split) is None:
        return [path for path in files if wanted_split.lower() in (words[path], *_words(path, folder))]
    exact = [path for path in files if words[path] == wanted_split.lower()]
    return exact or [path for path in files if splits[path] == _known(wanted_split)]


def visible(path: Path, folder: Path) -> bool:
    """Whether a file is neither hidden nor a cache file of `datasets`."""
    cached = path.suffix.lower() == ".arrow" and path.name.startswith(("cache-", "tmp"))
    return (
        not cached
        and path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def split_word(path: Path, folder: Path) -> str:
    """The word that names the split of a file.

    It is `train` for my_train.jsonl, data/train-00000-of-00002.parquet and default/train1/0000.parquet. A file's name
    takes precedence over its folder's, and the last word of a name over the first: training_rules_test.jsonl belongs to
    the test split. If no word is known, the result is the first word of the outermost name.
    """
    first = re.split(r"[-_.]", path.relative_to(folder).with_suffix("").parts[0])[0].lower()
    return next((word for word in _words(path, folder) if _known(word)), first)


def _words(path: Path, folder: Path) -> list[str]:
    names = reversed(path.relative_to(folder).with_suffix("").parts)
    return [word for name in names for word in reversed(re.split(r"[\W\d_]+", name.lower())) if word]


def _known(word: str) -> str | None:
    """The split that a word means: `test` for test, testing, testset and testdata."""
    return SPLITS.get(re.sub(r"(?<=.)(set|data)$", "", word.lower()))


@dataclass
class Listing:
    """The content of a folder. Paths are relative to it and sorted."""

    folder: Path
    images: dict[Path, list[str]] = field(default_factory=dict)
    """Folder -> names of the images in it, for each folder with images."""
    links: list[Path] = field(default_factory=list)
    """Symbolic links to folders."""
    other_files: list[Path] = field(default_factory=list)
    """Files that are no images, or are hidden."""
    empty: list[Path] = field(default_factory=list)
    """Folders without an image in them or below."""

    @property
    def paths(self) -> list[str]:
        """All images."""
        return [path for holder, names in self.images.items() for path in _paths(holder, names)]


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, each with its class folder's name, or None if it is in none."""

    folder: Path
    images: list[tuple[str, str | None]]
    """Paths relative to the folder, and labels."""
    links: list[Path]
    passed_over: list[str]
    left_aside: list[str]
    empty: list[Path]

    def rows(self, seen: Seen) -> Iterator[Record]:
        for link in self.links:
            where = legible(self.folder / link)
            yield where, DataError(f"{where}: is a symbolic link to a folder, which is not followed. Copy the folder.")
        folder = str(self.folder)
        for number, (image, label) in enumerate(self.images, start=1):
            seen(number / len(self.images))
            where, row = os.path.join(folder, image), {"image": image}  # noqa: PTH118  Path is many times as slow
            if not is_unicode(image):
                yield f"{where!a}", DataError(f"{where!a}: its name is not UTF-8 text. Rename it.")
                continue
            yield where, row if label is None else row | {"label": label}

    def identity(self) -> str:
        """A hash of all names and contents."""
        digest = sha256()
        for image, _ in self.images:
            digest.update(f"{image}\0{sha256_or_nothing(self.folder / image)}\0".encode(errors="backslashreplace"))
        others = "\0".join(map(str, [*self.links, *self.passed_over, *self.empty]))
        digest.update(others.encode(errors="backslashreplace"))
        return digest.hexdigest()


def _paths(holder: Path, names: list[str]) -> list[str]:
    within = "" if holder == Path() else f"{holder.as_posix()}/"
    return [f"{within}{name}" for name in names]


def legible(path: Path) -> str:
    """The path with escapes for bytes that are no UTF-8 text, since reports are."""
    return path.as_posix().encode(errors="backslashreplace").decode()


def sha256_or_nothing(path: Path) -> str:
    """The hash of a file; nothing for what is no file, such as a pipe, which would never end."""
    try:
        return sha256_of(path) if path.is_file() else ""
    except (OSError, ValueError):  # a broken link, or no permission; reading the row reports it
        return ""


def list_folder(folder: Path) -> Listing:
    listing = Listing(folder)
    for parent, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        here = Path(parent).relative_to(folder)
        for name in [*folders]:
            hidden = name.startswith(".") or name == OF_MAC
            if (Path(parent) / name).is_symlink() or hidden:
                (listing.other_files if hidden else listing.links).append(here / name)
                folders.remove(name)
        images = {name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")}
        named = {*READMES, *FILES} if here == Path() else set()
        listing.other_files += [here / name for name in files if name not in images and name not in named]
        if images:
            listing.images[here] = sorted(images)
        elif not folders:
            listing.empty.append(here)
    for paths in (listing.links, listing.other_files, listing.empty):
        paths.sort(key=lambda path: path.parts)
    listing.images = dict(sorted(listing.images.items(), key=lambda item: item[0].parts))
    return listing


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}).")


def choose_images(listing: Listing, wanted_split: str | None) -> ImageFolder:
    """The images of the wanted split, or of the training split; DataError where the class folders are unclear."""
    folder = listing.folder
    split_level = _split_level(listing)
    above = {holder: _split_folder(holder, split_level) for holder in listing.images}
    units = sorted({*above.values()})
    chosen = set(_chosen([folder / unit / "images" for unit in units], folder, wanted_split))
    holders = [holder for holder in listing.images if folder / above[holder] / "images" in chosen]
    counts = Counter[Path]()
    for holder, names in listing.images.items():
        counts[above[holder]] += len(names)
    left_aside = [
        f"{'other folders' if unit == Path() else legible(unit)} ({counts[unit]:,} images)"
        for unit in units
        if folder / unit / "images" not in chosen
    ]
    labels = {holder: None if holder == above[holder] else holder.name for holder in holders}
    _refuse_unclear(folder, [holder for holder in holders if labels[holder] is not None], above)
    images = [(path, labels[holder]) for holder in holders for path in _paths(holder, listing.images[holder])]
    return ImageFolder(
        folder, images, listing.links, [legible(path) for path in listing.other_files], left_aside,
        _without_images(listing, {*units} - {Path()}),
    )  # fmt: skip


def _names_split(name: str) -> bool:
    """Whether a word in the name of a folder means a split: cifar10-train."""
    return split_word(Path(name), Path()) in SPLITS


def _split_level(listing: Listing) -> bool:
    """Whether folders that are named like a split are splits: they hold class folders, or there are no others.

    Otherwise train may be a class, beside car and ship.
    """
    holders = {*listing.images} - {Path()}
    deep = any(_names_split(part) for holder in holders for part in holder.parts[:-1])
    return deep or (bool(holders) and all(holder.name.lower() in SPLITS for holder in holders))


def _split_folder(holder: Path, split_level: bool) -> Path:
    """The part of an image's folder that is above its class folder."""
    above = Path(*holder.parts[:-1])
    if split_level and holder.name.lower() in SPLITS and not any(map(_names_split, above.parts)):
        return holder
    return above


def _chosen(units: list[Path], folder: Path, wanted_split: str | None) -> list[Path]:
    chosen = chosen_files(units, folder, wanted_split)
    if not chosen:
        what = "training images" if wanted_split is None else f'images of a split "{wanted_split}"'
        splits = some(sorted({split_word(unit, folder) for unit in units}))
        raise DataError(f"{folder}: has no {what}. Its splits are {splits}; name one with data.split.")
    return chosen


def _refuse_unclear(folder: Path, holders: list[Path], above: dict[Path, Path]) -> None:
    """Class folders inside class folders, or of one name in several folders of the same split."""
    every = {*holders}
    for holder in holders:
        outer = next((parent for parent in holder.parents if parent in every), None)
        if outer is not None:
            raise DataError(
                f"{folder}: images lie in the folder {outer} and also in {holder}, so their classes are unclear. Put "
                "all images of a class directly into one folder with its name."
            )
    by_name: dict[str, Path] = {}
    for holder in holders:
        other = by_name.setdefault(holder.name, holder)
        if other != holder and not all(map(_is_of_split, (above[holder], above[other]))):
            raise DataError(
                f"{folder}: the folders {other} and {holder} have the same name, so the classes are unclear. Put all "
                "images of a class directly into one folder with its name."
            )


def _is_of_split(above: Path) -> bool:
    return any(map(_names_split, above.parts))


def _without_images(listing: Listing, splits: set[Path]) -> list[Path]:
    return [path for path in listing.empty if path != Path() and path not in splits]


def unnamed_images(folder: Path | None, named: set[Path]) -> str | None:
    """The end of a sentence about images beside a metadata file that none of its usable rows names."""
    images = list_folder(folder).paths if folder is not None else []
    unnamed = [image for image in images if folder is not None and folder / image not in named]
    listed = some(unnamed[:3]) + (f" and {len(unnamed) - 3:,} more" if len(unnamed) > 3 else "")
    return f"no usable row names these images of its folder: {listed}" if unnamed else None
