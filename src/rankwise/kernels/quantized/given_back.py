"""Weights that stay in a mapped file: their pages are given back to the system after each use.

What is read of a mapped file counts as resident memory of the process until the system is short of memory, or until it
is told that the pages are not needed (madvise). They are then read again at the next use, from the system's cache of
files or from the disk. So a model whose weights are larger than a limit can be trained under it.

Only pages that a file has unchanged may be given back this way. So a part is looked up in the process's own list of
mappings, and one that lies elsewhere, as after a move to another device, is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.kernels.quantized.tensor import Format, QuantizedTensor
from rankwise.system.mapped_memory import MappedRanges, give_pages_back, mapped_ranges


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
        self._give_back(parts)
        return matrix, factor

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        found = self.format.rows(parts, shape, dtype, index)
        self._give_back(parts)
        return found

    def _give_back(self, parts: Sequence[Tensor]) -> None:
        for part in parts:
            if part.device.type == "cpu" and (begin := part.data_ptr()) and self.ranges.has(begin, part.nbytes):
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
