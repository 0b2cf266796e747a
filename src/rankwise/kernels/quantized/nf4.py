"""NF4 with double quantisation, Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), in the layout of bitsandbytes.

    W = a_b L[code],    64 numbers of a row in a block b,    a_b = max |W| of the block

L are sixteen levels between -1 and 1, two codes lie in a byte, the earlier one in its high half. The block maxima are
stored in eight bits themselves: less their mean, 256 of them share one float32 maximum, and each is one of 256 values
whose exponent takes as many bits as it needs (Dettmers 2015, arXiv 1511.04561). All in all 4.13 bits a number.

bitsandbytes unpacks the codes where it is installed; the few lines of torch here give the same numbers, more slowly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rankwise.kernels.row_pieces import row_pieces

BLOCK, OUTER = 64, 256
"""Numbers that share a maximum, and maxima that share one."""
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen levels of NF4 as bitsandbytes has them, rounded to float32."""
FEW = 16
"""Up to so many levels, a number is compared with each midpoint between two of them."""
TINY = torch.finfo(torch.float32).tiny
Unpack = Callable[[Tensor, Tensor, tuple[int, int], torch.dtype], Tensor]


@dataclass(frozen=True)
class NF4WithMaxima:
    """NF4 without the second quantisation, which is read and not written. Parts: codes (O, I / 2), block maxima
    (O I / 64,) in float32."""

    name: str = "nf4"

    def unpack(
        self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        return _unpacking()(parts[0], parts[1], shape, dtype), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        maxima = parts[1].view(shape[0], -1)[index]
        return _unpacking()(parts[0][index], maxima.flatten(), (len(index), shape[1]), dtype)


@dataclass(frozen=True)
class NF4:
    """Parts: codes (O, I / 2), codes of the block maxima (O I / 64,), the maxima of those (ceil(O I / 64 / 256),) and
    the mean of the block maxima (1,)."""

    name: str = "nf4"
    part_names: tuple[str, ...] = ("codes", "maxima", "outer", "mean")

    def takes(self, shape: tuple[int, int]) -> bool:
        """Whether no block would reach over the end of a row."""
        return shape[1] % BLOCK == 0

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        """In pieces of whole rows, so that little more than the result is in memory."""
        rows, columns = weight.shape
        levels = torch.tensor(LEVELS, device=weight.device)
        codes = torch.empty(rows, columns // 2, dtype=torch.uint8, device=weight.device)
        maxima = torch.empty(rows, columns // BLOCK, device=weight.device)
        for first, last in row_pieces(rows, columns):
            blocks = weight[first:last].to(torch.float32).reshape(-1, BLOCK)
            largest = blocks.abs().amax(1)
            of_piece = nearest(blocks / largest.clamp_min(TINY)[:, None], levels).view(last - first, -1, 2)
            torch.bitwise_or(of_piece[..., 0] << 4, of_piece[..., 1], out=codes[first:last])
            maxima[first:last] = largest.view(last - first, -1)
        return codes, *_pack_maxima(maxima.flatten())

    def unpack(
        self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        return _unpacking()(parts[0], block_maxima(*parts[1:]), shape, dtype), None

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        maxima = block_maxima(*parts[1:]).view(shape[0], -1)[index]
        return _unpacking()(parts[0][index], maxima.flatten(), (len(index), shape[1]), dtype)


def nearest(numbers: Tensor, levels: Tensor) -> Tensor:
    """The number of the nearest of sorted levels, in uint8: how many midpoints between two levels lie below. For
    few levels, a comparison with each midpoint is faster than a binary search, which the processor cannot do for
    several numbers at once."""
    middles = (levels[1:] + levels[:-1]) / 2
    if len(levels) > FEW:
        return torch.bucketize(numbers.contiguous(), middles).to(torch.uint8)
    number = torch.zeros(numbers.shape, dtype=torch.uint8, device=numbers.device)
    above = torch.empty(numbers.shape, dtype=torch.bool, device=numbers.device)
    for middle in middles:
        number += torch.gt(numbers, middle, out=above).view(torch.uint8)
    return number


def block_maxima(codes: Tensor, outer: Tensor, mean: Tensor) -> Tensor:
    """The maxima of all blocks, in float32."""
    values = dynamic_values(codes.device)
    if is_unpacked_by_library():
        within = torch.ops.bitsandbytes.dequantize_blockwise.default(codes, outer, values, OUTER, torch.float32)
        return within.add_(mean)
    return plain_block_maxima(codes, outer, mean)


def plain_block_maxima(codes: Tensor, outer: Tensor, mean: Tensor) -> Tensor:
    """The largest magnitude of each block, by torch alone."""
    within = dynamic_values(codes.device)[codes.int()]
    return (within * outer.repeat_interleave(OUTER)[: len(codes)]).add_(mean)


def _pack_maxima(maxima: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, mean = dynamic_values(maxima.device), maxima.mean()
    left = maxima - mean
    filled = torch.nn.functional.pad(left, (0, -len(left) % OUTER)).view(-1, OUTER)
    outer = filled.abs().amax(1)
    shares = filled / outer.clamp_min(TINY)[:, None]
    return nearest(shares, values).flatten()[: len(left)].clone(), outer, mean.reshape(1)


@cache
def dynamic_values(device: torch.device) -> Tensor:
    """256 sorted values: 0, 1, and of each sign, for each exponent e of 0 to 6, the middles of 2^e equal parts of
    0.1 to 1, times 10^(e - 6)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6)).tolist()
        values += [sign * middle for middle in middles for sign in (1, -1)]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@cache
def _unpacking() -> Unpack:
    """By bitsandbytes where it can be imported, without its remarks on kernels for answers, which are not used."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401  registers its operations with torch
    except (ImportError, OSError, RuntimeError):
        return plain_unpacked
    finally:
        logger.setLevel(level)
    return _unpacked_by_library


def is_unpacked_by_library() -> bool:
    """Whether bitsandbytes unpacks NF4 here."""
    return _unpacking() is _unpacked_by_library


def _unpacked_by_library(codes: Tensor, maxima: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    exact = torch.float32 if dtype == torch.float64 else dtype
    return torch.ops.bitsandbytes.dequantize_4bit.default(codes, maxima, BLOCK, "nf4", shape, exact).to(dtype)


def plain_unpacked(codes: Tensor, maxima: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Unpacked weights, by torch alone: each byte is looked up as its pair of levels, which is one number of eight
    bytes, in pieces that stay in the cache."""
    levels, byte = torch.tensor(LEVELS, device=codes.device), torch.arange(256, device=codes.device)
    pairs = torch.stack([levels[byte >> 4], levels[byte & 15]], 1).view(torch.int64).flatten()
    codes, maxima = codes.view(-1, BLOCK // 2), maxima.view(-1, 1)
    blocks = torch.empty((len(maxima), BLOCK), dtype=dtype, device=codes.device)
    for first, last in row_pieces(*blocks.shape):
        numbers = pairs.index_select(0, codes[first:last].flatten().int()).view(torch.float32)
        blocks[first:last] = numbers.view(-1, BLOCK).mul_(maxima[first:last])
    return blocks.view(shape)
