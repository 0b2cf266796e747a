"""Weights as they lie in a GGUF file: rows of whole blocks, unpacked for a product or row by row for an embedding.

The only part of such a weight is a tensor of bytes (O, bytes of a row), which may be a view of the mapped file: then
nothing of it is in memory that the system could not drop and read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.kernels.quantized import gguf_blocks as blocks_of
from rankwise.kernels.regions import CompiledRegion

AT_ONCE = 2**19
"""Numbers that are unpacked together where nothing is compiled, so that what lies between fits a core's cache."""
Factors = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class GgufBlocks:
    """`numbers` of a row in `bytes`. `split` cuts blocks (N, bytes) into what `region` is given before the dtype."""

    name: str
    numbers: int
    bytes: int
    split: Factors
    region: CompiledRegion[..., Any]
    part_names: tuple[str, ...] = ("blocks",)

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, None]:
        blocks = parts[0].reshape(-1, self.bytes)
        if self.region.compiled is not None and len(blocks) > 1:
            return self.region(*self.split(blocks), dtype).view(shape), None
        unpacked = torch.empty(len(blocks), self.numbers, dtype=dtype, device=blocks.device)
        count = AT_ONCE // self.numbers
        for begin in range(0, len(blocks), count):
            given = [part.contiguous() for part in self.split(blocks[begin : begin + count])]
            numbers = self.region.plain(*given, torch.float32)
            unpacked[begin : begin + count] = numbers.view(-1, self.numbers)
        return unpacked.view(shape), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        return self.unpack([parts[0][index]], (len(index), shape[1]), dtype)[0]


@dataclass(frozen=True)
class GgufBfloat16:
    """In products of bfloat16 the file itself is read."""

    name: str = "BF16"
    numbers: int = 1
    bytes: int = 2
    part_names: tuple[str, ...] = ("blocks",)

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, None]:
        return parts[0].view(torch.bfloat16).to(dtype).view(shape), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        return parts[0][index].view(torch.bfloat16).to(dtype)


def _f16(blocks: Tensor) -> tuple[Tensor, ...]:
    return (blocks.view(torch.float16).flatten(),)


def _q4_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 2:], blocks_of.halves(blocks, 0, 1)


def _q4_1(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 4:], *blocks_of.halves(blocks, 0, 2).split(1, 1)


def _q5_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 6:], blocks_of.fifth_bits(blocks[:, 2:6]), blocks_of.halves(blocks, 0, 1)


def _q5_1(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 8:], blocks_of.fifth_bits(blocks[:, 4:8]), *blocks_of.halves(blocks, 0, 2).split(1, 1)


def _q8_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 2:].view(torch.int8), blocks_of.halves(blocks, 0, 1)


def _q4_k(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 16:].view(-1, 4, 32), *blocks_of.six_bit_factors(blocks)


def _q5_k(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[:, 48:].view(-1, 4, 32), blocks[:, 16:48], *blocks_of.six_bit_factors(blocks)


def _q6_k(blocks: Tensor) -> tuple[Tensor, ...]:
    d = blocks[:, 192:208].view(torch.int8).to(torch.float32) * blocks_of.halves(blocks, 208, 1)
    return blocks[:, :128].view(-1, 2, 64), blocks[:, 128:192].view(-1, 2, 32), d[:, :, None]


GgufFormat = GgufBlocks | GgufBfloat16
FORMATS: Mapping[str, GgufFormat] = {
    one.name: one
    for one in (
        GgufBfloat16(),
        GgufBlocks("F16", 1, 2, _f16, blocks_of.sixteen_bits),
        GgufBlocks("Q4_0", 32, 18, _q4_0, blocks_of.four_bits),
        GgufBlocks("Q4_1", 32, 20, _q4_1, blocks_of.four_bits_above),
        GgufBlocks("Q5_0", 32, 22, _q5_0, blocks_of.five_bits),
        GgufBlocks("Q5_1", 32, 24, _q5_1, blocks_of.five_bits_above),
        GgufBlocks("Q8_0", 32, 34, _q8_0, blocks_of.eight_bits),
        GgufBlocks("Q4_K", 256, 144, _q4_k, blocks_of.four_bits_of_256),
        GgufBlocks("Q5_K", 256, 176, _q5_k, blocks_of.five_bits_of_256),
        GgufBlocks("Q6_K", 256, 210, _q6_k, blocks_of.six_bits_of_256),
    )
}
"""By the name that the gguf package has for the type."""
