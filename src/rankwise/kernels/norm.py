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


@dataclass(frozen=True)
class RmsNorm:
    """Of x (..., d), with weight (d,); an `Entrance` that keeps r (..., 1)."""

    weight: Tensor
    eps: float

    def there(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = values
        exact = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = scale.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return self.again(scale, x), scale

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        assert kept is not None, "`there` gives it"
        return torch.mul(values[0], kept).to(values[0].dtype).mul_(self.weight)

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor]:
        assert kept is not None, "`there` gives it"
        (x,) = values
        change = torch.mul(grad, self.weight)
        along = torch.linalg.vecdot(change.to(kept.dtype), x.to(kept.dtype)).unsqueeze(-1)
        along = along.mul_(kept.pow(3)).div_(-x.shape[-1])
        return (torch.mul(change, kept).addcmul_(x, along).to(x.dtype),)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return entered(RmsNorm(weight, eps), x)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same by autograd."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
