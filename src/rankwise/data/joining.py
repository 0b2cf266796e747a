"""Encoded parts joined in the order of their rows, to what one pass over all rows gives.

Tokens and signatures go to files where there are many, so that memory holds some bytes a row and none a token. What has
to be kept of a row beside them are its number of sequences, a digest of its text and of its question, its length, and
its group and label where there are any.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.data.duplicates import TextIndex
from rankwise.data.growing import Growing
from rankwise.data.part_store import PartStore
from rankwise.data.report import Tally
from rankwise.data.row_names import NAMES, STARTS, RowNames
from rankwise.data.sequences import COLUMNS, EncodedRows
from rankwise.data.source_rows import SourceRows
from rankwise.data.sources import Reading
from rankwise.data.tally_facts import join


@dataclass
class JoinedRows:
    """The sequences of all parts, in files of the folder if there is one."""

    folder: Path | None
    _columns: dict[str, Growing] = field(default_factory=dict)
    _images: list[np.ndarray] = field(default_factory=list)
    _length: int = 0
    _tokens: int = 0
    _letters: int = 0

    def __len__(self) -> int:
        return self._length

    def add(self, rows: EncodedRows) -> None:
        for name, dtype in COLUMNS.items():
            self._extend(name, getattr(rows, name), dtype)
        begin = slice(1 if self._length or "starts" in self._columns else 0, None)
        self._extend("starts", (rows.starts + self._tokens)[begin], np.int64)
        if rows.targets is not None:
            self._extend("targets", rows.targets, np.float64)
        if rows.names is not None:
            starts = (rows.names.starts + self._letters)[1 if STARTS in self._columns else 0 :]
            self._extend(NAMES, rows.names.letters, np.uint8)
            self._extend(STARTS, starts, np.int64)
            self._letters += len(rows.names.letters)
        self._images.extend(rows.images if rows.images is not None else ())
        self._length += len(rows)
        self._tokens += len(rows.ids)

    def _extend(self, name: str, values: np.ndarray | None, dtype: Any) -> None:
        if values is None:
            return
        if name not in self._columns:
            width = values.shape[1] if values.ndim > 1 else None
            file = None if self.folder is None else self.folder / (name if "." in name else f"{name}.bin")
            self._columns[name] = Growing(dtype, width, file)
        self._columns[name].extend(values)

    def finished(self) -> EncodedRows:
        if "starts" not in self._columns:
            self.add(EncodedRows.of([]))
        if self.folder is not None:
            for column in self._columns.values():
                column.close()
            return EncodedRows.read(self.folder)
        arrays = {name: column.view().array for name, column in self._columns.items()}
        names = RowNames(arrays.pop(NAMES), arrays.pop(STARTS)) if NAMES in arrays else None
        return EncodedRows(**arrays, images=self._images or None, names=names)  # pyright: ignore[reportArgumentType]


@dataclass
class Joined:
    """All rows that are read."""

    rows: JoinedRows
    tally: Tally
    apart: Tally
    """Of the rows of the validation source, which are counted nowhere else."""
    prompts: TextIndex
    """Of the usable rows of all sources."""
    groups: dict[str, int] = field(default_factory=dict)
    """A number for each group."""
    trained: list[SourceRows] = field(default_factory=list)
    measured: list[SourceRows] = field(default_factory=list)

    @classmethod
    def begun(cls, empty: Tally, folder: Path | None) -> Joined:
        tally = empty.anew()
        tally.texts = TextIndex(None if folder is None else folder / "signatures")
        prompts = TextIndex(None if folder is None else folder / "prompt_signatures")
        return cls(JoinedRows(folder), tally, empty.anew(), prompts)

    def add(self, reading: Reading, weight: float, source: int, store: PartStore, *, apart: bool) -> None:
        """Add the parts of a source."""
        tally = self.apart if apart else self.tally
        rows = SourceRows(reading, weight, len(self.rows), len(self.prompts))
        for part in store.parts(source, tally):
            rows.extend(part.facts, self.groups)
            self.rows.add(part.rows)
            self.prompts.extend(part.facts.prompts.digests, part.facts.prompts.signatures)
            join(tally, part.tally)
            reading.skipped += part.skipped
            for name, unused in part.unused.items():
                reading.unused.setdefault(name, type(unused)()).join(unused)
        tally.unreadable(reading.skipped)
        (self.measured if apart else self.trained).append(rows)

    def questions(self, spec: DataConfig) -> np.ndarray | None:
        """A number for each usable row, the same for rows with the same question; None where nobody needs it."""
        needed = spec.may_hold_out and spec.held_out_order == "seed" and spec.group is None
        return self.prompts.firsts() if needed else None
