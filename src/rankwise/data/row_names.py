"""Where each row came from, as one array of bytes for all rows, so that a million names are no burden.

name of row n = bytes[starts[n] : starts[n + 1]]        in UTF-8
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankwise.errors import DataError

NAMES, STARTS = "names.bin", "name_starts.bin"


@dataclass(frozen=True)
class RowNames:
    letters: np.ndarray
    """(B,) uint8"""
    starts: np.ndarray
    """(N + 1,) int64"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> str:
        return self.letters[self.starts[number] : self.starts[number + 1]].tobytes().decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    @classmethod
    def of(cls, names: Sequence[str]) -> RowNames:
        encoded = [name.encode(errors="replace") for name in names]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts)

    @classmethod
    def gathered(cls, parts: Sequence[RowNames]) -> RowNames:
        return cls.of([name for part in parts for name in part])

    def write(self, folder: Path) -> None:
        self.letters.tofile(folder / NAMES)
        self.starts.tofile(folder / STARTS)

    @classmethod
    def read(cls, folder: Path, rows: int) -> RowNames | None:
        """Map the files that `write` made; None where rows have no names."""
        if not (folder / STARTS).exists():
            return None
        starts = np.fromfile(folder / STARTS, np.int64)
        size = (folder / NAMES).stat().st_size
        if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != size or (np.diff(starts) < 0).any():
            raise DataError(f"{folder} is damaged: its names are not those of {rows:,} rows.")
        return cls(np.memmap(folder / NAMES, np.uint8, "r") if size else np.empty(0, np.uint8), starts)
