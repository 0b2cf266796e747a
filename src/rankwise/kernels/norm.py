"""RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) with frozen weights.

    n = x r,  r = 1 / sqrt(mean(x^2) + eps)
    y = w n             rounded to the dtype of x before the product with w, as in Llama
    y = (1 + w) n       rounded after it, as in Gemma
    dx = r (d - n mean(d n)),  d = w g or (1 + w) g

RMSNorm is computed in float32 and saves only x and r. LayerNorm is torch's own and saves x, its mean and r:

    n = (x - mean(x)) r,  r = 1 / sqrt(var(x) + eps),  y = w n + b

A feed-forward layer's activation, gated (Shazeer 2020) or not.

    x = f(e) u  or  f(e),      de = f'(e) u dx,   du = f(e) dx

Only e and u are saved; f(e) and x are recomputed in the backward pass. Autograd would save them too, which makes up
half of the saved activations of a Llama block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.kernels.regions import CompiledRegion

Activation = Literal["silu", "gelu", "gelu-tanh"]


@dataclass(frozen=True)
class ActivationPrologue:
    """A `Prologue` of e (T, F), or of e and u, that saves nothing but its inputs."""

    activation: Activation

    def forward(self, *values: Tensor) -> tuple[Tensor, None]:
        return self.recompute(None, *values), None

    def recompute(self, saved: Tensor | None, *values: Tensor) -> Tensor:
        if len(values) == 1:
            return _active(values[0], self.activation)
        return _gated(values[0], values[1], self.activation)

    def backward(self, saved: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        if len(values) == 1:
            return (_slope(grad, values[0], self.activation),)
        return _gated_back(grad, values[0], values[1], self.activation)


@CompiledRegion
def _gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return _active(gate, activation).mul_(up)


@CompiledRegion
def _gated_back(grad: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    return _slope(grad * up, gate, activation), _active(gate, activation).mul_(grad)


def _active(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu-tanh" else "none")


def _slope(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """Return f'(x) grad."""
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, x)
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh" if activation == "gelu-tanh" else "none")


@dataclass(frozen=True)
class RmsNorm:
    """RMSNorm of x (..., d) with weight (d,); a `Prologue` that saves r (..., 1)."""

    weight: Tensor
    eps: float

    @property
    def factor(self) -> Tensor:
        """The factor of n."""
        return self.weight

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        return _rms_forward(values[0], self.factor, self.eps)

    def recompute(self, saved: Tensor | None, *values: Tensor) -> Tensor:
        assert saved is not None, "`forward` returned it"
        return _rms_recompute(values[0], self.factor, saved)

    def backward(self, saved: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor]:
        assert saved is not None, "`forward` returned it"
        return (_rms_backward(values[0], self.factor, saved, grad),)


class ShiftedRmsNorm(RmsNorm):
    """RMSNorm as in Gemma, whose factor is 1 + w."""

    @property
    def factor(self) -> Tensor:
        return 1.0 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))


def _times(exact: Tensor, scale: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply n by the factor; n is rounded first only if the factor has the dtype of x. Operands of one dtype, since
    torch's product of bfloat16 and float32 numbers is slower than the conversion."""
    n = torch.mul(exact, scale)
    return n.to(dtype).mul_(factor) if factor.dtype == dtype else n.mul_(factor).to(dtype)


@CompiledRegion
def _rms_forward(x: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return _times(exact, scale, factor, x.dtype), scale


@CompiledRegion
def _rms_recompute(x: Tensor, factor: Tensor, scale: Tensor) -> Tensor:
    return _times(x.to(scale.dtype), scale, factor, x.dtype)


@CompiledRegion
def _rms_backward(x: Tensor, factor: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    change, exact = torch.mul(grad, factor).to(scale.dtype), x.to(scale.dtype)
    along = torch.linalg.vecdot(change, exact).unsqueeze(-1)
    along = along.mul_(scale.pow(3)).div_(-x.shape[-1])
    return torch.mul(change, scale).addcmul_(exact, along).to(x.dtype)


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm of x (..., d) with weight and bias (d,); a `Prologue` that saves means and r (2, ..., 1)."""

    weight: Tensor
    bias: Tensor
    eps: float

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        y, mean, scale = self._normed(values[0])
        return y, torch.stack((mean, scale))

    def recompute(self, saved: Tensor | None, *values: Tensor) -> Tensor:
        """Compute x anew, at the cost of one pass over it; torch offers no cheaper way."""
        return self._normed(values[0])[0]

    def backward(self, saved: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor]:
        assert saved is not None, "`forward` returned it"
        mean, scale = saved.unbind()
        weight, bias = self._exact(values[0])
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, values[0], weight.shape, mean, scale, weight, bias, (True, False, False)
        )
        return (dx,)

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = self._exact(x)
        return torch.ops.aten.native_layer_norm(x, weight.shape, weight, bias, self.eps)

    def _exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the dtype that makes torch keep means and r in float32. On a CPU that takes float32
        weights, which leave y unchanged; on a GPU torch does so by itself and only accepts the dtype of x."""
        exact = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
        return self.weight.to(exact), self.bias.to(exact)
