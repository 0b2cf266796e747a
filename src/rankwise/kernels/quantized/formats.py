"""The formats that a base model in full precision can be stored in."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rankwise.kernels.quantized.int8 import Int8
from rankwise.kernels.quantized.nf4 import NF4
from rankwise.kernels.quantized.tensor import Format


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
