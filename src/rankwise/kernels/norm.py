"""Normalisations with frozen weights: by the root mean square (Zhang and Sennrich 2019), and of layers (Ba 2016).

    n = x r,  r = 1 / sqrt(mean(x^2) + eps)
    y = w n             rounded to the format of x before w, as in Llama
    y = (1 + w) n       rounded at the end, as in Gemma
    dx = r (d - n mean(d n)),  d = w g or (1 + w) g

In float32; x and r alone are kept. Layer normalisation is torch's own, of which x, its mean and r are kept:

    n = (x - mean(x)) r,  r = 1 / sqrt(var(x) + eps),  y = w n + b
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.kernels.regions import Region


@dataclass(frozen=True)
class RmsNorm:
    """Of x (..., d), with weight (d,); an `Entrance` that keeps r (..., 1)."""

    weight: Tensor
    eps: float

    @property
    def factor(self) -> Tensor:
        """Of n."""
        return self.weight

    def there(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        return _there(values[0], self.factor, self.eps)

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        assert kept is not None, "`there` gives it"
        return _scaled(values[0], self.factor, kept)

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor]:
        assert kept is not None, "`there` gives it"
        return (_back(values[0], self.factor, kept, grad),)


class ShiftedRmsNorm(RmsNorm):
    """Gemma's."""

    @property
    def factor(self) -> Tensor:
        return 1.0 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))


def _times(x: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
    """n is rounded before a factor of its own format, and after one that is more exact."""
    n = torch.mul(x, scale)
    return n.to(x.dtype).mul_(factor) if factor.dtype == x.dtype else n.mul_(factor).to(x.dtype)


@Region
def _there(x: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(x.dtype, torch.float32)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return _times(x, scale, factor), scale


@Region
def _scaled(x: Tensor, factor: Tensor, scale: Tensor) -> Tensor:
    return _times(x, scale, factor)


@Region
def _back(x: Tensor, factor: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    change = torch.mul(grad, factor)
    along = torch.linalg.vecdot(change.to(scale.dtype), x.to(scale.dtype)).unsqueeze(-1)
    along = along.mul_(scale.pow(3)).div_(-x.shape[-1])
    return torch.mul(change, scale).addcmul_(x, along).to(x.dtype)


@dataclass(frozen=True)
class LayerNorm:
    """Of x (..., d), with weight and bias (d,); an `Entrance` that keeps means and r (2, ..., 1)."""

    weight: Tensor
    bias: Tensor
    eps: float

    def there(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        y, mean, scale = self._normed(values[0])
        return y, torch.stack((mean, scale))

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        """Anew: torch has no other way, and it costs what one pass over x does."""
        return self._normed(values[0])[0]

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor]:
        assert kept is not None, "`there` gives it"
        mean, scale = kept.unbind()
        weight, bias = self._exact(values[0])
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, values[0], weight.shape, mean, scale, weight, bias, (True, False, False)
        )
        return (dx,)

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = self._exact(x)
        return torch.ops.aten.native_layer_norm(x, weight.shape, weight, bias, self.eps)

    def _exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """With these in float32, torch on a processor keeps means and r of 16-bit numbers in it too, and y is the
        same; on a GPU it does so by itself, and takes no other format than that of x."""
        exact = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
        return self.weight.to(exact), self.bias.to(exact)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same by autograd."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def plain_shifted_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (normed * (1.0 + weight.to(exact.dtype))).to(x.dtype)


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(exact, -1, correction=0, keepdim=True)
    return (weight * ((exact - mean) * torch.rsqrt(variance + eps)) + bias).to(x.dtype)
