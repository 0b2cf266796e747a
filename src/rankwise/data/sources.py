"""A source of rows (file, folder, hub data set) into Examples, with what was skipped and why.

The form is found for each file by its first readable row. Of a folder with splits the training files are read, or
those of the split that was asked for; other files in it (a README, a licence) are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.data.example import Example
from rankwise.data.files import SUFFIXES, Record, Seen, need, records
from rankwise.data.formats import FIELDS, find_format, parse_row, refuse_other_form, renamed
from rankwise.data.licences import find_licence
from rankwise.errors import DataError, did_you_mean, some
from rankwise.run.writing import sha256_of
from rankwise.spec.data import DataSpec, SourceSpec

HUB = "hub:"
CHUNK = 1000
SPLITS = ("train", "training", "valid", "validation", "val", "dev", "test", "testing", "eval", "evaluation")


@dataclass
class Part:
    """One file, or one split of a hub data set, and what was found in it while it was read."""

    name: str
    open: Callable[[Seen], Iterator[Record]]
    identity: Callable[[], str]
    """Changes with the content."""
    folder: Path | None = None
    licence: str | None = None
    format: str | None = None
    rows: int = 0
    share: float = 0.0
    """How much of it has been read, where that is known."""

    def seen(self, share: float) -> None:
        self.share = share


@dataclass
class Reading:
    """A source while it is read: iterate over `chunks()`; rows that are none collect in `skipped`."""

    spec: DataSpec
    source: SourceSpec
    parts: list[Part]
    left_aside: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """`file:line` and the reason."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def share(self) -> float:
        """How much of it has been read, as far as that is known."""
        return sum(part.share for part in self.parts) / len(self.parts)

    def chunks(self) -> Iterator[list[list[Example]]]:
        """A thousand rows at a time; each row is the list of its examples."""
        chunk: list[list[Example]] = []
        for row in self._drawn():
            chunk.append(row)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _drawn(self) -> Iterator[list[Example]]:
        if self.source.rows is None:
            return self._parsed()
        every = list(self._parsed())
        count = min(self.source.rows, len(every))
        chosen = np.random.default_rng([self.spec.seed, 1]).choice(len(every), count, replace=False)
        return iter([every[index] for index in sorted(chosen)])

    def _parsed(self) -> Iterator[list[Example]]:
        for part in self.parts:
            part.rows = 0
            for where, row in part.open(part.seen):
                part.rows += 1
                try:
                    yield self._examples(part, where, row)
                except DataError as error:
                    self.skipped.append((where, str(error)))
                    if part.format is None and self.spec.on_bad_row == "stop":
                        break  # the form is not known, so the same would be said of every row
            part.share = 1.0

    def _examples(self, part: Part, where: str, row: Any) -> list[Example]:
        if isinstance(row, DataError):
            raise row
        try:
            return self._parse(part, where, row)
        except RecursionError:
            raise DataError(f"{where}: is nested too deeply to be a row.") from None

    def _parse(self, part: Part, where: str, row: dict[str, Any]) -> list[Example]:
        if part.format is None:
            part.format = self._form(row, where)
        given = self.source.format != "auto"
        refuse_other_form(renamed(row, self.source.columns, where), part.format, where, given=given)
        return parse_row(
            row, part.format, where,
            system=self.spec.system, columns=self.source.columns, labels=self.source.labels,
        )  # fmt: skip

    def _form(self, row: dict[str, Any], where: str) -> str:
        if self.source.format != "auto":
            return self.source.format
        return find_format(renamed(row, self.source.columns, where), where)


def open_source(spec: DataSpec, source: SourceSpec) -> Reading:
    unknown = [name for name in source.columns if name not in FIELDS]
    if unknown:
        raise DataError(f'data.columns names "{unknown[0]}", which no row has.{did_you_mean(unknown[0], FIELDS)}')
    if source.path.startswith(HUB):
        return Reading(spec, source, [_hub_part(source)])
    path = Path(os.path.expanduser(source.path))  # noqa: PTH111  Path's raises for a user that is not there
    if not os.path.exists(path):  # noqa: PTH110  Path.exists raises where a name is too long
        raise DataError(f"{path}: there is no such file.{_nearby(path)}")
    if path.is_dir():
        return _open_folder(spec, source, path)
    if source.split is not None:
        raise DataError(f"{path}: is one file and has no splits; leave out data.split.")
    return Reading(spec, source, [_file_part(path)])


def _nearby(path: Path) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.is_dir():
        return f" For a hub data set write {HUB}{path}."
    here = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, here)


def _file_part(path: Path) -> Part:
    if not path.is_file():
        raise DataError(f"{path}: is not a file of rows.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read (Permission denied).")
    return Part(str(path), lambda seen: records(path, seen), lambda: sha256_of(path), path.parent)


def _open_folder(spec: DataSpec, source: SourceSpec, folder: Path) -> Reading:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: is the folder of a model, and holds no rows.")
    saved = (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()  # datasets' own layout
    suffixes = (".arrow",) if saved else SUFFIXES
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and _visible(path, folder))
    split = source.split or ("train" if any(_split_of(path, folder) == "train" for path in files) else None)
    chosen = [path for path in files if split is None or _split_of(path, folder) == split]
    if not chosen:
        splits = sorted({_split_of(path, folder) for path in files})
        raise DataError(
            f'{folder}: has no files of a split "{source.split}". Its splits are {some(splits)}.'
            if files
            else f"{folder}: holds no file of rows ({', '.join(SUFFIXES)})."
        )
    left = [str(path.relative_to(folder)) for path in files if path not in chosen]
    return Reading(spec, source, [_file_part(path) for path in chosen], left)


def _visible(path: Path, folder: Path) -> bool:
    """Neither hidden nor what `datasets` keeps beside rows that it has mapped."""
    made = path.suffix.lower() == ".arrow" and path.name.startswith(("cache-", "tmp"))
    return (
        not made and path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def _split_of(path: Path, folder: Path) -> str:
    """`train` of train.jsonl, data/train-00000-of-00002.parquet and default/train/0000.parquet."""
    folders = path.relative_to(folder).parent.parts
    words = [re.split(r"[-_.]", name)[0].lower() for name in (path.stem, *reversed(folders))]
    return next((word for word in words if word in SPLITS), words[-1])


def _hub_part(source: SourceSpec) -> Part:
    """`datasets` fetches what is not in its cache, asking the network only for what was named."""
    need("datasets", f"{source.path}: reading a hub data set")
    from datasets import Dataset, DatasetDict, load_dataset

    name = source.path.removeprefix(HUB)
    if os.path.exists(name):  # noqa: PTH110  `datasets` would read it instead
        raise DataError(f"{source.path}: there is a {name} in this folder. Name that without {HUB}, or work elsewhere.")
    try:
        loaded: Any = load_dataset(name, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # whatever the hub's client, the network or a damaged cache raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source.path}: cannot be had: {reason}") from None
    if isinstance(loaded, DatasetDict):
        split = "train" if "train" in loaded or len(loaded) > 1 else next(iter(loaded))
        if split not in loaded:
            raise DataError(f"{source.path}: has the splits {some(map(str, loaded))}; name one with data.split.")
        loaded = loaded[split]
    assert isinstance(loaded, Dataset)
    rows = loaded
    label = f"{source.path}/{rows.split or 'all'}"
    return Part(
        label,
        lambda seen: ((f"{label}:{number}", dict(row)) for number, row in enumerate(rows, start=1)),
        lambda: str(rows._fingerprint),
        licence=rows.info.license or _card_licence(name, source.revision),
    )


def _card_licence(name: str, revision: str | None) -> str | None:
    from huggingface_hub import hf_hub_download

    try:
        card = hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
    except Exception:  # whatever the hub's client raises: a data set without a card, or no network any more
        return None
    found = find_licence(Path(card).parent)
    return found.name if found is not None else None
