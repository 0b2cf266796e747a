"""Whole numbers of eight bits with one scale for each row: W (O, I) = s_o Q, s_o = max_i |W_oi| / 127.

In a product the scale is a factor of the outputs, y = s (x Q^T), so Q is only copied to the number format of x; each
whole number up to 127 is exact in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127


@dataclass(frozen=True)
class Int8:
    """Parts: numbers (O, I) in int8, scales (O,) in float32."""

    name: str = "int8"
    part_names: tuple[str, ...] = ("numbers", "scales")

    def takes(self, shape: tuple[int, int]) -> bool:
        return True

    def pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        exact = weight.to(torch.float32)
        scales = exact.abs().amax(1) / LARGEST
        numbers = (exact / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
        return numbers.to(torch.int8), scales

    def unpack(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        numbers, scales = parts
        return numbers.to(dtype), scales

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        numbers, scales = parts
        return (numbers[index].to(torch.float32) * scales[index, None]).to(dtype)
