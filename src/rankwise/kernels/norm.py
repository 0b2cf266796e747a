"""Root-mean-square normalisation (Zhang and Sennrich 2019) with a frozen weight, as one step of autograd.

    n = x r,  r = 1 / sqrt(mean(x^2) + eps),  y = w n        rounded to the format of x before w, as in Llama
    dx = r (d - n mean(d n)),  d = w g

In float32; x and r alone are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d), weight (d,)"""
    return _RmsNorm.apply(x, weight, eps)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same by autograd."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        change = torch.mul(grad, weight)
        along = torch.linalg.vecdot(change.to(scale.dtype), x.to(scale.dtype)).unsqueeze(-1)
        along = along.mul_(scale.pow(3)).div_(-x.shape[-1])
        return torch.mul(change, scale).addcmul_(x, along).to(x.dtype), None, None
