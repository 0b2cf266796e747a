"""Read a source of rows (file, folder, hub data set) as Examples, and collect the rows that cannot be read.

The first readable row of each file decides its format. In a folder with splits, the training files are read, or the
files of the split that the user names; test files are read only if the user names them. Other files in the folder (a
README, a licence) are ignored. A damaged file is one problem in the list, next to those of other rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config.base import shown
from rankwise.config.data import DataConfig, Rows
from rankwise.errors import DataError, did_you_mean, some
from rankwise.rows.files.columnar import LARGE_ROWS, Record
from rankwise.rows.files.files import SUFFIXES
from rankwise.rows.files.hub import HUB, Part, hub_part
from rankwise.rows.files.image_folder import (
    METADATA,
    ImageFolder,
    choose_images,
    chosen_files,
    legible,
    list_folder,
    split_word,
    visible,
)
from rankwise.rows.files.parts import arrays_in, file_part
from rankwise.rows.forms.columns import DATABASES, database_of, from_columns, refuse_unfilled, renamed
from rankwise.rows.forms.formats import (
    FIELDS,
    ROW_CHECKS,
    find_format,
    parse_row,
    refuse_images,
    refuse_other_form,
    refuse_row,
)
from rankwise.rows.forms.turns import is_turn, reasoning_in_content
from rankwise.rows.text.example import Example
from rankwise.rows.text.text_encoding import is_unicode

CHUNK = 1000
MOST_IN_MEMORY = 100_000
"""Rows of which some are drawn that are held until it is known which; of a larger source, they are read again."""


Watch = Callable[[Part, str, Any, Sequence[Example]], None]
"""Sees each row as it is in its file: the file, `file:line`, the row, and its examples, none if it cannot be read."""


def unwatched(part: Part, where: str, row: Any, examples: Sequence[Example]) -> None:
    """Nobody wants a report."""


@dataclass
class OpenedSource:
    """A source while it is read. Iterate over `chunks()`; rows that cannot be read are collected in `skipped`."""

    config: DataConfig
    source: Rows
    parts: list[Part]
    left_aside: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """`file:line` of each skipped row, and the reason."""
    passed_over: list[str] = field(default_factory=list)
    """Files in an image folder that are no images."""
    empty_folders: list[str] = field(default_factory=list)
    """Folders in an image folder that contain no image."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def share(self) -> float:
        """Share of the source that has been read, as far as it is known."""
        return sum(part.share for part in self.parts) / len(self.parts)

    def chunks(self, watch: Watch = unwatched) -> Iterator[list[list[Example]]]:
        """Yield the readable rows, a thousand at a time and fewer if they hold images; each row is the list of its
        examples."""
        chunk: list[list[Example]] = []
        for row in self._drawn(watch):
            chunk.append(row)
            if len(chunk) >= (CHUNK if row[0].image is None else LARGE_ROWS):
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _drawn(self, watch: Watch) -> Iterator[list[Example]]:
        if self.source.rows is None:
            return self._readable(watch)
        every: list[list[Example] | None] = []
        for row in self._readable(watch):
            every.append(row if row[0].image is None and len(every) < MOST_IN_MEMORY else None)
        drawn_rows = min(self.source.rows, len(every))
        drawn = np.random.default_rng([self.config.seed, 1]).choice(len(every), drawn_rows, replace=False)
        rows = [row for index in sorted(drawn) if (row := every[index]) is not None]
        return iter(rows) if len(rows) == drawn_rows else self._again({*drawn.tolist()})

    def _again(self, numbers: set[int]) -> Iterator[list[Example]]:
        """The rows with these numbers, read once more, since all rows together may not fit into the memory."""
        self.skipped.clear()
        return (row for number, row in enumerate(self._readable(unwatched)) if number in numbers)

    def _readable(self, watch: Watch) -> Iterator[list[Example]]:
        """Each row of each file that can be read."""
        for part in self.parts:
            part.rows = 0
            for where, row in raw_records(part):
                part.rows += 1
                try:
                    examples = self.examples(part, where, row)
                except DataError as error:
                    self.skipped.append((where, str(error)))
                    watch(part, where, row, ())
                    if part.format is None and not isinstance(row, DataError) and self.config.on_bad_row == "stop":
                        break  # every row would have the same problem
                    continue
                watch(part, where, row, examples)
                yield examples
            part.share = 1.0

    def examples(self, part: Part, where: str, row: Any) -> list[Example]:
        """The examples of one raw row. The first row of a file decides its format."""
        if isinstance(row, DataError):
            raise row
        try:
            return self._parse(part, where, row)
        except RecursionError:
            raise DataError(f"{where}: is nested too deeply to be a row.") from None

    def _parse(self, part: Part, where: str, row: dict[str, Any]) -> list[Example]:
        source, system, whole = self.source, self.system, row
        row = without_ignored(row, source.ignore_columns)
        if source.prompt is not None and source.completion is not None:
            part.format = "columns"
            each = source.alternatives == "each"
            examples = from_columns(row, source.prompt, source.completion, system, where, each=each)
            return self._grouped(examples, part, whole, where)
        refuse_unfilled(system, row, where)
        ROW_CHECKS.get(source.format, refuse_row)(row, source.columns, where)
        fields = renamed(row, source.columns, where)
        given = "image" if part.of_images and source.format == "auto" else source.format
        if given != "image":
            refuse_images(fields, source.columns, where)
        if part.format is None:
            part.format = given if given != "auto" else find_format(fields, where)
        refuse_other_form(fields, part.format, where, is_named=given != "auto")
        row = row if self.config.reasoning == "none" else reasoning_in_content(row)
        examples = parse_row(
            row, part.format, where, folder=part.images,
            system=system, columns=source.columns, labels=source.labels, alternatives=source.alternatives,
        )  # fmt: skip
        return self._grouped(examples, part, whole, where)

    def _grouped(self, examples: list[Example], part: Part, row: dict[str, Any], where: str) -> list[Example]:
        """Add the row's database and its value of data.group to its examples."""
        if any(name in row for name in DATABASES) and (database := database_of(row, part.folder)) is not None:
            examples = [replace(example, database=database) for example in examples]
        column = self.config.group
        if column is None:
            return examples
        if column not in row:
            raise DataError(
                f"{where}: has no column {column!r} (data.group); it has {some(map(shown, row), 8)}."
                f"{did_you_mean(column, row)}"
            )
        value = row[column]
        if value is None or value == "" or value != value:  # pandas writes NaN where nothing is
            return examples
        if not isinstance(value, str | int | float):
            raise DataError(f"{where}: the group ({column}) is {shown(value)}; a text or a number is expected.")
        return [replace(example, group=str(value)) for example in examples]

    @property
    def system(self) -> str | None:
        """The system message of this source, or the one for all sources."""
        return self.source.system if self.source.system is not None else self.config.system


def without_ignored(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The row without these columns, and its turns without these keys."""
    row = {name: value for name, value in row.items() if name not in names}
    for name, value in row.items() if names else ():
        if isinstance(value, list) and any(map(is_turn, value)):
            row[name] = [{k: v for k, v in one.items() if k not in names} if is_turn(one) else one for one in value]
    return row


def raw_records(part: Part) -> Iterator[Record]:
    """Raw rows of a part. Damage that ends the reading is yielded as the last one."""
    rows = part.open(part.seen)
    try:
        yield from rows
    except DataError as error:
        where = re.match(re.escape(part.name) + r"(:\d+)?", str(error))
        yield where[0] if where else part.name, error


def first_rows(reading: OpenedSource, most: int = 300) -> list[dict[str, Any]]:
    """The first rows of the first part, as they are in the file."""
    return [row for _, row in islice(raw_records(reading.parts[0]), most) if not isinstance(row, DataError)]


def open_source(config: DataConfig, source: Rows) -> OpenedSource:
    unknown = [name for name in source.columns if name not in FIELDS]
    if unknown:
        raise DataError(
            f'data.columns: "{unknown[0]}" is not a known field.{did_you_mean(unknown[0], FIELDS)} Write '
            f"FIELD=COLUMN, as in --set data.columns.prompt=question. Known fields: {', '.join(FIELDS)}."
        )
    if source.path.startswith(HUB):
        return OpenedSource(config, source, [hub_part(source)])
    path = Path(os.path.expanduser(source.path))  # noqa: PTH111  Path's raises for a user that is not there
    if not os.path.exists(path):  # noqa: PTH110  Path.exists raises where a name is too long
        if os.path.islink(path):  # noqa: PTH114
            raise DataError(f"{path}: is a link to a missing file ({os.readlink(path)}).")  # noqa: PTH115
        raise DataError(f"{path}: there is no such file.{_nearby(path)}")
    if path.is_dir():
        return _open_folder(config, source, path)
    if source.split is not None:
        raise DataError(f"{path}: is a single file without splits; leave out data.split.")
    return OpenedSource(config, source, [file_part(path, source)])


def _nearby(path: Path) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.is_dir():
        return f" For a hub data set write {HUB}{path}."
    here = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, here)


def _open_folder(config: DataConfig, source: Rows, folder: Path) -> OpenedSource:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: is the folder of a model and contains no rows.")
    saved = (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()  # datasets' own layout
    suffixes = (".arrow",) if saved else SUFFIXES
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and visible(path, folder))
    if (illegible := next((path for path in files if not is_unicode(str(path))), None)) is not None:
        raise DataError(f"{legible(illegible)}: its name is not UTF-8 text. Rename it.")
    if not saved and all(path.name.lower() in METADATA for path in files):
        listing = list_folder(folder)
        if listing.images and not files:
            return _of_images(config, source, choose_images(listing, source.split))
        files = files if listing.images else files or arrays_in(folder)
    if not files:
        raise DataError(f"{folder}: contains no file of rows ({', '.join(SUFFIXES)}), no images and no .npz file.")
    chosen = chosen_files(files, folder, source.split)
    if not chosen:
        what = "training files" if source.split is None else f'files of a split "{source.split}"'
        splits = some(sorted({split_word(path, folder) for path in files}))
        raise DataError(f"{folder}: has no {what}. Its splits are {splits}; name one with data.split.")
    left = [str(path.relative_to(folder)) for path in files if path not in chosen]
    return OpenedSource(config, source, [file_part(path, source) for path in chosen], left)


def _of_images(config: DataConfig, source: Rows, images: ImageFolder) -> OpenedSource:
    part = Part(str(images.folder), images.rows, images.identity, images.folder, images=images.folder, of_images=True)
    empty = [legible(images.folder / path) for path in images.empty]
    return OpenedSource(config, source, [part], images.left_aside, passed_over=images.passed_over, empty_folders=empty)
