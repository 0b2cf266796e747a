"""Weights that stay in a mapped file: their pages are given back to the system after each use.

What is read of a mapped file counts as resident memory of the process until the system is short of memory, or until it
is told that the pages are not needed (madvise). They are then read again at the next use, from the system's cache of
files or from the disk. So a model whose weights are larger than a limit can be trained under it.

Only pages that a file has unchanged may be given back this way. So a part is looked up in the process's own list of
mappings, and one that lies elsewhere, as after a move to another device, is left alone. Linux alone tells of its
mappings. Elsewhere none is known, so nothing is given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.kernels.quantized.tensor import Format, QuantizedTensor

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
    for line in MAPS.read_text(encoding="utf-8").splitlines() if MAPS.exists() else ():
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


@dataclass(frozen=True)
class InFull:
    """A matrix (O, I) as its file has it, which becomes the number format of products only there."""

    name: str = "full"

    def takes(self, shape: tuple[int, int]) -> bool:
        return True

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, None]:
        return parts[0].to(dtype), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        return parts[0][index].to(dtype)


@dataclass(frozen=True)
class GivenBack:
    """Another format, whose parts are given back where they lie in `ranges`. `storages` keeps these mappings from being
    closed, so that their addresses mean the same as long as this lives."""

    format: Format
    ranges: MappedRanges
    storages: tuple[torch.UntypedStorage, ...]

    @property
    def name(self) -> str:
        return self.format.name

    def unpack(
        self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """A matrix that is a view of a part would bring the pages back when it is used, so it is copied."""
        matrix, factor = self.format.unpack(parts, shape, dtype)
        if any(_storage(matrix) == _storage(part) for part in parts):
            matrix = matrix.clone()
        give_parts_back(parts, self.ranges)
        return matrix, factor

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        found = self.format.rows(parts, shape, dtype, index)
        give_parts_back(parts, self.ranges)
        return found


def give_parts_back(parts: Sequence[Tensor], ranges: MappedRanges) -> None:
    for part in parts:
        if part.device.type == "cpu" and (begin := part.data_ptr()) and ranges.has(begin, part.nbytes):
            give_pages_back(begin, part.nbytes)


def give_back_after_use(module: nn.Module) -> int:
    """Give the packed weights of a model back after each use, as far as they lie in mapped files; return how many bytes
    these are."""
    ranges, total = mapped_ranges(), 0
    for parameter in module.parameters():
        weight: Any = parameter
        if not isinstance(weight, QuantizedTensor):
            continue
        inside = [part for part in weight.parts if ranges.has(part.data_ptr(), part.nbytes)]
        if inside:
            weight.format = GivenBack(weight.format, ranges, tuple(part.untyped_storage() for part in inside))
            total += sum(part.nbytes for part in inside)
    return total


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
