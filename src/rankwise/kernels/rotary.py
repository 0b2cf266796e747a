"""Rotary position embeddings (Su et al. 2021) on the two halves of a head, as one autograd function.

    y_1 = x_1 cos - x_2 sin,   y_2 = x_2 cos + x_1 sin

The gradient is the inverse rotation, so nothing of x is saved. If the angles cover only the first part of a head (as in
GPT-NeoX), the halves of that part are rotated and the rest stays unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (H, T, D) by angles (T, D), or (T, fewer than D), whose two halves are equal."""
    return _Rotated.apply(x, cos, sin)


def plain_rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute the same with autograd, as the reference for tests."""
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), -1)
    first, second = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-second, first), -1) * sin, rest), -1)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    width = cos.shape[-1]
    half = width // 2
    y = torch.empty_like(x)
    torch.mul(x[..., :width], cos, out=y[..., :width])
    y[..., width:] = x[..., width:]
    y[..., :half].addcmul_(x[..., half:width], sin[..., :half], value=-way)
    y[..., half:width].addcmul_(x[..., :half], sin[..., half:], value=way)
    return y
