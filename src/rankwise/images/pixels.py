"""Pixels of many images in little memory: a file without a name that grows, and views of what is in it.

The system reads pages from the disk as they are needed and drops them when memory is short. The file's space is free
again when the last view is gone, also where the process is killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.system.files import told_when_full, unnamed_file


class PixelFile:
    """Images (S, S, 3) uint8, one after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None

    def add(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Write images of one shape, and return views of them in the file."""
        if not images:
            return []
        with told_when_full(self._folder):
            if self._file is None:
                self._file = unnamed_file(self._folder)
            begin = self._file.seek(0, 2)
            for image in images:
                self._file.write(image.tobytes())
            self._file.flush()
        shape = (len(images), *images[0].shape)
        return list(np.memmap(self._file, np.uint8, "r", begin, shape))
