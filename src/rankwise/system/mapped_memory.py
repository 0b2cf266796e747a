"""Memory that is a mapped file: which addresses of this process are, and how their pages are given back.

Linux alone tells of its mappings. Elsewhere none is known, so nothing is given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class MappedRanges:
    """Sorted addresses at which mappings of files begin and end, those that touch each other joined."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def has(self, begin: int, size: int) -> bool:
        """Whether all of these bytes are in mapped files."""
        at = bisect_right(self.begins, begin) - 1
        return at >= 0 and begin + size <= self.ends[at]


def mapped_ranges() -> MappedRanges:
    """The address ranges of private mappings of files on a disk, as safetensors and torch map weights."""
    begins: list[int] = []
    ends: list[int] = []
    for line in MAPS.read_text().splitlines() if MAPS.exists() else ():
        addresses, access, _, _, inode, *_ = line.split(maxsplit=5)
        if inode == "0" or access[3] != "p" or access[2] == "x":
            continue
        begin, end = (int(one, 16) for one in addresses.split("-"))
        if ends and ends[-1] == begin:
            ends[-1] = end
        else:
            begins.append(begin)
            ends.append(end)
    return MappedRanges(tuple(begins), tuple(ends))


def give_pages_back(begin: int, size: int) -> None:
    """Let the system drop the pages of these bytes, which must be an unchanged part of a mapped file: pages that were
    written to would lose what was written."""
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    if (madvise := _madvise()) is not None and madvise(first, begin + size - first, mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    if not MAPS.exists():
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
