"""Parts of a source: files, and data sets of the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rankwise.config.data import Rows
from rankwise.errors import DataError, first_line, some
from rankwise.rows.files.columnar import Record, Seen, digest_of, need
from rankwise.rows.files.licences import find_licence, recognised
from rankwise.runs.row_facts import LayoutFacts
from rankwise.system.hub import is_forbidden

HUB = "hub:"
ROWS_AT_ONCE = 1000


@dataclass
class Part:
    """One file, or one split of a hub data set, with the facts that reading it collects."""

    name: str
    open: Callable[[Seen], Iterator[Record]]
    identity: Callable[[], str]
    """A hash of the content: of a file's bytes, or of a hub data set's columns and rows."""
    folder: Path | None = None
    """Where a licence is looked for."""
    images: Path | None = None
    """The folder that paths of images are relative to."""
    licence: str | None = None
    of_images: bool = False
    """Whether all rows are images: of an image folder, of its metadata, or of arrays."""
    format: str | None = None
    layout: LayoutFacts | None = None
    """Layout of a table: encoding, column separator, sheet."""
    rows: int = 0
    share: float = 0.0
    """Share of the part that has been read, if known."""

    def seen(self, share: float) -> None:
        self.share = share

    def note(self, layout: LayoutFacts) -> None:
        self.layout = layout


def hub_part(source: Rows) -> Part:
    need("datasets", f"{source.path}: reading a hub data set")
    from datasets import ClassLabel, Image
    from huggingface_hub.constants import HF_HOME

    name = source.path.removeprefix(HUB)
    if os.path.exists(name):  # noqa: PTH110  `datasets` would read it instead
        raise DataError(
            f"{source.path}: a local file or folder has the same name. Leave out {HUB} to read {name} here, or run "
            "rankwise in another folder."
        )
    rows, licence = _fetched(name, source.subset, source.split, source.revision)
    label = f"{source.path}/{rows.split or 'all'}"
    for column in [column for column, kind in rows.features.items() if isinstance(kind, Image)]:
        rows = rows.cast_column(column, Image(decode=False))  # the bytes of each file, as other files have them
    labels = {column: kind.names for column, kind in rows.features.items() if isinstance(kind, ClassLabel)}
    names = {} if source.labels else labels
    identity = cache(lambda: digest_of(rows.with_format("arrow").iter(ROWS_AT_ONCE)))
    return Part(label, lambda seen: _hub_records(rows, label, names), identity, images=Path(HF_HOME), licence=licence)


@cache
def _fetched(name: str, subset: str | None, split: str | None, revision: str | None) -> tuple[Any, str | None]:
    """Rows of the hub and their licence, asked for once: what is trained on is what was looked at before.

    `datasets` fetches what is not in its own cache, asking the network only for what was named.
    """
    from datasets import Dataset, DatasetDict, load_dataset
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if is_forbidden() and not HF_HUB_OFFLINE:  # else the library reads what it has stored, and asks nobody
        raise DataError(f"{HUB}{name}: the hub may not be asked here.")
    try:
        loaded: Any = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # whatever the hub's client, the network or a damaged cache raises
        raise DataError(f"{HUB}{name}: cannot be loaded: {first_line(error)}") from None
    if isinstance(loaded, DatasetDict):
        only = "train" if "train" in loaded or len(loaded) > 1 else next(iter(loaded))
        if only not in loaded:
            raise DataError(f"{HUB}{name}: has the splits {some(map(str, loaded))}; name one with data.split.")
        loaded = loaded[only]
    assert isinstance(loaded, Dataset)
    return loaded, recognised(loaded.info.license or "") or _card_licence(name, revision)


def _hub_records(rows: Any, label: str, names: dict[str, list[str]]) -> Iterator[Record]:
    """A row that cannot be decoded ends the library's loop over rows, so that it begins anew behind it."""
    number = 0
    while number < len(rows):
        try:
            for row in rows.select(range(number, len(rows))):
                number += 1
                yield f"{label}:{number}", with_names(row, names)
        except Exception as error:  # whatever a damaged cache, a decoder or Python raises for a value
            number += 1
            yield f"{label}:{number}", DataError(f"{label}:{number}: cannot be decoded: {first_line(error)}.")


def with_names(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """`datasets` writes -1 for a label that is not known."""
    named = {
        column: known[number] if isinstance(number := row[column], int) and 0 <= number < len(known) else None
        for column, known in names.items()
    }
    return {**row, **named}


def _card_licence(name: str, revision: str | None) -> str | None:
    from huggingface_hub import hf_hub_download

    try:
        card = hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
    except Exception:  # whatever the hub's client raises: a data set without a card, or no network any more
        return None
    return find_licence(Path(card).parent)
