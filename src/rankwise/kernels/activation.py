"""A feed-forward layer's activation, gated (Shazeer 2020) or not.

    x = f(e) u  or  f(e),      de = f'(e) u dx,   du = f(e) dx

e and u are kept, f(e) and x are made again in the backward pass: by autograd these would be half of what a block of
Llama's keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.kernels.regions import Region

Activation = Literal["silu", "gelu", "gelu-tanh"]


@dataclass(frozen=True)
class Activated:
    """Of e (T, F), or of e and u: an `Entrance` that keeps nothing else."""

    activation: Activation

    def there(self, *values: Tensor) -> tuple[Tensor, None]:
        return self.again(None, *values), None

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        if len(values) == 1:
            return _active(values[0], self.activation)
        return _gated(values[0], values[1], self.activation)

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        if len(values) == 1:
            return (_slope(grad, values[0], self.activation),)
        return _gated_back(grad, values[0], values[1], self.activation)


@Region
def _gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return _active(gate, activation).mul_(up)


@Region
def _gated_back(grad: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    return _slope(grad * up, gate, activation), _active(gate, activation).mul_(grad)


def plain_activated(activation: Activation, *values: Tensor) -> Tensor:
    """The same by autograd."""
    active = _active(values[0], activation)
    return active if len(values) == 1 else active * values[1]


def _active(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu-tanh" else "none")


def _slope(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """f'(x) grad"""
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, x)
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh" if activation == "gelu-tanh" else "none")
