"""The formats that a base model in full precision can be stored in.

Whole numbers of eight bits with one scale for each row: W (O, I) = s_o Q, s_o = max_i |W_oi| / 127.

In a product the scale is a factor of the outputs, y = s (x Q^T), so Q is only copied to the number format of x; each
whole number up to 127 is exact in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rankwise.kernels.quantized.nf4 import NF4
from rankwise.kernels.quantized.tensor import Format
from rankwise.kernels.row_pieces import row_pieces

LARGEST = 127
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Int8:
    """Parts: numbers (O, I) in int8, scales (O,) in float32."""

    name: str = "int8"
    part_names: tuple[str, ...] = ("numbers", "scales")

    def takes(self, shape: tuple[int, int]) -> bool:
        return True

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """In pieces of whole rows, so that little more than the result is in memory."""
        rows, columns = weight.shape
        numbers = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
        scales = torch.empty(rows, device=weight.device)
        for first, last in row_pieces(rows, columns):
            exact = weight[first:last].to(torch.float32)
            scales[first:last] = exact.abs().amax(1) / LARGEST
            numbers[first:last] = (exact / scales[first:last, None].clamp_min(TINY)).round_()
        return numbers, scales

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        numbers, scales = parts
        return numbers.to(dtype), scales

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        numbers, scales = parts
        return (numbers[index].to(torch.float32) * scales[index, None]).to(dtype)


class PackingFormat(Format, Protocol):
    """A format that is also written."""

    @property
    def part_names(self) -> tuple[str, ...]: ...

    def takes(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape can be stored so."""
        ...

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The parts of a matrix (O, I), which may lie in a mapped file: it is read in pieces."""
        ...


FORMATS: dict[str, PackingFormat] = {"nf4": NF4(), "int8": Int8()}
