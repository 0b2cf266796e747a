"""What lies before linear layers, a norm or an activation, so that it can be part of their step of autograd.

Its output x is as large as what goes in and soon made again, so only what goes in need be kept: `back` and `again` get
the values and whatever small thing `there` gave beside x.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Entrance(Protocol):
    """A function of one tensor or several, without parameters that learn."""

    def there(self, *values: Tensor) -> tuple[Tensor, Tensor | None]:
        """x, and what else to keep."""
        ...

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        """The same x."""
        ...

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """dx to the gradients of the values."""
        ...


class Straight:
    """Nothing is done to it."""

    def there(self, *values: Tensor) -> tuple[Tensor, None]:
        return values[0], None

    def again(self, kept: Tensor | None, *values: Tensor) -> Tensor:
        return values[0]

    def back(self, kept: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return (grad,)


def entered(entrance: Entrance, *values: Tensor) -> Tensor:
    """x by itself, as a step of autograd."""
    return _Entered.apply(entrance, *values)


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entrance: Entrance, *values: Tensor) -> Tensor:
        x, kept = entrance.there(*values)
        ctx.entrance = entrance
        ctx.save_for_backward(kept, *values)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept, *values = ctx.saved_tensors
        return None, *ctx.entrance.back(kept, grad, *values)
