"""A feed-forward layer's activation, gated (Shazeer 2020) or not.

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


def plain_activated(activation: Activation, *values: Tensor) -> Tensor:
    """Compute the same with autograd, as the reference for tests."""
    active = _active(values[0], activation)
    return active if len(values) == 1 else active * values[1]


def _active(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu-tanh" else "none")


def _slope(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """Return f'(x) grad."""
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, x)
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh" if activation == "gelu-tanh" else "none")
