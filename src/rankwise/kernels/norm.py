"""Root-mean-square normalisation (Zhang and Sennrich 2019) with a frozen weight.

    n = x r,  r = 1 / sqrt(mean(x^2) + eps),  y = w n        rounded to the format of x before w, as in Llama
    dx = r (d - n mean(d n)),  d = w g

In float32; x and r alone are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.kernels.entrance import entered
from rankwise.kernels.regions import Region


@dataclass(frozen=True)
class RmsNorm:
    """Of x (..., d), with weight (d,); an `Entrance` that keeps r (..., 1)."""

    weight: Tensor
    eps: float

    def there(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        return _there(values[0], self.weight, self.eps)

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        assert kept is not None, "`there` gives it"
        return _scaled(values[0], self.weight, kept)

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor]:
        assert kept is not None, "`there` gives it"
        return (_back(values[0], self.weight, kept, grad),)


@Region
def _there(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(x.dtype, torch.float32)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale).to(x.dtype).mul_(weight), scale


@Region
def _scaled(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return torch.mul(x, scale).to(x.dtype).mul_(weight)


@Region
def _back(x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    change = torch.mul(grad, weight)
    along = torch.linalg.vecdot(change.to(scale.dtype), x.to(scale.dtype)).unsqueeze(-1)
    along = along.mul_(scale.pow(3)).div_(-x.shape[-1])
    return torch.mul(change, scale).addcmul_(x, along).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return entered(RmsNorm(weight, eps), x)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same by autograd."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
