"""The norm or activation before linear layers, in a form that can be part of their autograd function.

Its output x is as large as its input and cheap to recompute, so only the input is saved. `recompute` and `backward`
receive the input values and the small tensor that `forward` returned beside x.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Prologue(Protocol):
    """A function of one or several tensors without trainable parameters."""

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x and an optional small tensor to save."""
        ...

    def recompute(self, saved: Tensor | None, *values: Tensor) -> Tensor:
        """Return the same x again."""
        ...

    def backward(self, saved: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Turn dx into the gradients of the values."""
        ...


class Identity:
    """The prologue that passes its input through."""

    def forward(self, *values: Tensor) -> tuple[Tensor, None]:
        return values[0], None

    def recompute(self, saved: Tensor | None, *values: Tensor) -> Tensor:
        return values[0]

    def backward(self, saved: Tensor | None, grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return (grad,)


def apply_prologue(prologue: Prologue, *values: Tensor) -> Tensor:
    """Apply a prologue alone, as an autograd function."""
    return _ApplyPrologue.apply(prologue, *values)


class _ApplyPrologue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prologue: Prologue, *values: Tensor) -> Tensor:
        x, saved = prologue.forward(*values)
        ctx.prologue = prologue
        ctx.save_for_backward(saved, *values)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved, *values = ctx.saved_tensors
        return None, *ctx.prologue.backward(saved, grad, *values)
