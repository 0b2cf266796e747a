"""Frozen linear layers that share an input, with their low-rank corrections, as one autograd function.

    h = x [A_1; A_2; ...]^T,   y_k = x W_k^T + b_k + h_k B_k^T
    dh_k = g_k B_k,  dB_k = g_k^T h_k,  dA = dh^T x,  dx = sum g_k W_k + dh A

Only x and h are saved for the backward pass. Sums are accumulated in place by the matrix products; the products of x
with all A_k are one product. The corrections stand first in each sum: a product adds in float32 to what is there and
rounds once, so a change far below the spacing of bfloat16 is still there on average. Added to a sum that is rounded
already, most of it would be lost. The norm or activation that produces x can be part of the function: then its input is
saved instead of x, and x is recomputed.

The norm or activation before linear layers, in a form that can be part of their autograd function.

Its output x is as large as its input and cheap to recompute, so only the input is saved. `recompute` and `backward`
receive the input values and the small tensor that `forward` returned beside x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
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


@dataclass(frozen=True)
class LinearSpec:
    """y = x W^T + b + x A^T B^T. Weight (O, I) and bias (O,) are frozen; A (R, I) and B (O, R) may be None."""

    weight: Tensor
    bias: Tensor | None
    A: Tensor | None = None
    B: Tensor | None = None


def linear_spec_of(module: nn.Module) -> LinearSpec | None:
    """Describe a linear layer; None for any other module. An adapter wrapper describes itself by its method
    `linear_spec`."""
    if type(module) is nn.Linear:
        return LinearSpec(module.weight, module.bias)
    if is_conv1d(module):
        stored: Any = module
        return LinearSpec(stored.weight.T, stored.bias)
    describe: Callable[[], LinearSpec | None] | None = getattr(module, "linear_spec", None)
    return None if describe is None else describe()


def is_conv1d(module: nn.Module) -> bool:
    """Recognise GPT-2's linear layer, whose weight is stored as (I, O), by name and shape, without importing
    transformers."""
    return (
        type(module).__name__ == "Conv1D"
        and hasattr(module, "nf")
        and getattr(module, "weight", torch.empty(0)).ndim == 2
    )


def shared_linears(prologue: Prologue, values: Sequence[Tensor], specs: Sequence[LinearSpec]) -> tuple[Tensor, ...]:
    """Apply `prologue` to the values, which gives x (T, I), and each layer to x, which gives (T, O_k)."""
    dtype = values[0].dtype
    downs = [spec.A.to(dtype) for spec in specs if spec.A is not None]
    down = None if not downs else downs[0] if len(downs) == 1 else torch.cat(downs)
    ups = [None if spec.B is None else spec.B.to(dtype) for spec in specs]
    frozen = [(spec.weight, spec.bias) for spec in specs]
    return _SharedLinears.apply(frozen, prologue, len(values), *values, down, *ups)


class _SharedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, frozen: list[tuple[Tensor, Tensor | None]], prologue: Prologue, count: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        values, down, ups = tensors[:count], tensors[count], tensors[count + 1 :]
        x, saved = prologue.forward(*values)  # pyright: ignore[reportArgumentType]
        h = None if down is None else x @ down.T
        outputs, parts = [], _parts(h, ups)
        for (weight, bias), part, up in zip(frozen, parts, ups, strict=True):
            if part is None or up is None:
                outputs.append(x @ weight.T if bias is None else torch.addmm(bias, x, weight.T))
                continue
            outputs.append(rounded_once(part @ up.T, x, weight, bias))
        ctx.frozen, ctx.prologue, ctx.count = [weight for weight, _ in frozen], prologue, count
        ctx.save_for_backward(*values, down, *ups, h, saved)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *given, h, saved = ctx.saved_tensors
        values, down, ups = given[: ctx.count], given[ctx.count], given[ctx.count + 1 :]
        changes = [None if up is None else grad @ up for grad, up in zip(grads, ups, strict=True)]
        there = [change for change in changes if change is not None]
        dh = None if not there else there[0] if len(there) == 1 else torch.cat(there, 1)
        d_ups = [None if part is None else grad.T @ part for grad, part in zip(grads, _parts(h, ups), strict=True)]
        d_down = None if dh is None else dh.T @ ctx.prologue.recompute(saved, *values)
        d_values: tuple[Tensor | None, ...] = (None,) * ctx.count
        if any(ctx.needs_input_grad[3 : 3 + ctx.count]):
            dx = None if dh is None else dh @ down
            for grad, weight in zip(grads, ctx.frozen, strict=True):
                dx = grad @ weight if dx is None else dx.addmm_(grad, weight)
            d_values = ctx.prologue.backward(saved, dx, *values)
        return None, None, None, *d_values, d_down, *d_ups


def rounded_once(change: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b + change, in place of the change where that can be. With a bias only oneDNN has one product for all of
    it; elsewhere the change is added to the bias before."""
    if bias is None:
        return change.addmm_(x, weight.T)
    plain = x.dtype == torch.bfloat16 and x.device.type == "cpu" and type(weight) in (Tensor, nn.Parameter)
    if plain and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.ops.mkldnn._linear_pointwise.binary(x, change, weight, bias, "add")
    return change.add_(bias).addmm_(x, weight.T)


def _parts(h: Tensor | None, ups: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Split h into the columns that belong to each layer."""
    parts: list[Tensor | None] = []
    first = 0
    for up in ups:
        if up is None or h is None:
            parts.append(None)
        else:
            parts.append(h[:, first : first + up.shape[1]])
            first += up.shape[1]
    return parts
