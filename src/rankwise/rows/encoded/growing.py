"""An array that grows at its end, in memory or in a file.

In memory it takes a few bytes a value, where a list of Python objects takes ten times as many. In a file it takes none:
what is read of it is mapped, and `release` gives the mapped pages back.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class View:
    """The values so far, to be read only. `release` may be called while the array is used."""

    array: np.ndarray
    release: Callable[[], None] = _nothing


class Growing:
    """Values of one type; rows of `width` values where that is given. A file has no name, so that nothing is left of
    it."""

    def __init__(self, dtype: Any, width: int | None = None, file: BinaryIO | None = None) -> None:
        self._dtype, self._shape = np.dtype(dtype), (-1,) if width is None else (-1, width)
        self._bytes = self._dtype.itemsize * (width or 1)
        self._file = file
        self._memory = bytearray()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: Sequence[Any] | np.ndarray) -> None:
        array = np.ascontiguousarray(values, self._dtype).reshape(self._shape)
        self._length += len(array)
        content = array.data.cast("B") if array.size else b""
        if self._file is None:
            self._memory += content
        else:
            self._file.write(content)

    def view(self) -> View:
        """In memory, nothing may be added while the view is used."""
        if self._file is None:
            return View(np.frombuffer(self._memory, self._dtype).reshape(self._shape))
        self._file.flush()
        if not self._length:
            return View(np.empty((0, *self._shape[1:]), self._dtype))
        mapping = mmap.mmap(self._file.fileno(), self._length * self._bytes, access=mmap.ACCESS_READ)
        array = np.frombuffer(mapping, self._dtype).reshape(self._shape)
        return View(array, lambda: _give_back(mapping))

    def write(self, path: Path) -> None:
        """The values as a file of this name. Nothing is added afterwards."""
        with path.open("wb") as out:
            if self._file is None:
                out.write(self._memory)
            else:
                self._file.seek(0)
                shutil.copyfileobj(self._file, out)


def _give_back(mapping: mmap.mmap) -> None:
    if hasattr(mapping, "madvise"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)
