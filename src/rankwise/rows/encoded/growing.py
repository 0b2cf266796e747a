"""An array that grows at its end, in memory or in a file.

In memory it takes a few bytes a value, where a list of Python objects takes ten times as many. In a file it takes none:
what is read of it is mapped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class Growing:
    """Values of one type; rows of `width` values where that is given. A file has no name, so that nothing is left of
    it."""

    def __init__(self, dtype: Any, width: int | None = None, file: BinaryIO | None = None) -> None:
        self._dtype, self._shape = np.dtype(dtype), (-1,) if width is None else (-1, width)
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

    def view(self) -> np.ndarray:
        """The values so far, to be read only. In memory, nothing may be added while they are used."""
        if self._file is None:
            return np.frombuffer(self._memory, self._dtype).reshape(self._shape)
        self._file.flush()
        values = np.memmap(self._file, self._dtype, "r") if self._length else np.empty(0, self._dtype)
        return np.asarray(values).reshape(self._shape)

    def write(self, path: Path) -> None:
        """The values as a file of this name. Nothing is added afterwards."""
        with path.open("wb") as out:
            if self._file is None:
                out.write(self._memory)
            else:
                self._file.seek(0)
                shutil.copyfileobj(self._file, out)
