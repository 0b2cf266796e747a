"""Frozen linear layers that share an input, with their low-rank corrections, as one step of autograd.

    h = x [A_1; A_2; ...]^T,   y_k = x W_k^T + b_k + h_k B_k^T
    dh_k = g_k B_k,  dB_k = g_k^T h_k,  dA = dh^T x,  dx = sum g_k W_k + dh A

Of what autograd would keep only x and h are kept; corrections are added into what they correct by the product itself,
and so are the parts of dx; the thin products of all layers with x are one. A norm or an activation that x comes from
(entrance.py) can be part of the step: then what goes in there is kept, and x is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankwise.kernels.prologue import Entrance


@dataclass(frozen=True)
class Piece:
    """y = x W^T + b + x A^T B^T: weight (O, I) and bias (O,) are frozen, A (R, I) and B (O, R) may be none."""

    weight: Tensor
    bias: Tensor | None
    A: Tensor | None = None
    B: Tensor | None = None


def piece_of(module: nn.Module) -> Piece | None:
    """A linear layer as a piece; None where it is something else. What lies over one answers for itself (`piece`)."""
    if type(module) is nn.Linear:
        return Piece(module.weight, module.bias)
    if is_conv1d(module):
        stored: Any = module
        return Piece(stored.weight.T, stored.bias)
    made: Callable[[], Piece | None] | None = getattr(module, "piece", None)
    return None if made is None else made()


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose weight is stored as (I, O); by shape and name, so no model library is needed."""
    return (
        type(module).__name__ == "Conv1D"
        and hasattr(module, "nf")
        and getattr(module, "weight", torch.empty(0)).ndim == 2
    )


def shared_linears(entrance: Entrance, values: Sequence[Tensor], pieces: Sequence[Piece]) -> tuple[Tensor, ...]:
    """x (T, I), which `entrance` makes of the values, to (T, O_k) of each piece."""
    dtype = values[0].dtype
    downs = [piece.A.to(dtype) for piece in pieces if piece.A is not None]
    down = None if not downs else downs[0] if len(downs) == 1 else torch.cat(downs)
    ups = [None if piece.B is None else piece.B.to(dtype) for piece in pieces]
    frozen = [(piece.weight, piece.bias) for piece in pieces]
    return _SharedLinears.apply(frozen, entrance, len(values), *values, down, *ups)


def plain_shared_linears(x: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, ...]:
    """The same, one after another, by autograd."""
    outputs = []
    for piece in pieces:
        y = nn.functional.linear(x, piece.weight, piece.bias)
        if piece.A is not None and piece.B is not None:
            y = y + x @ piece.A.to(x.dtype).T @ piece.B.to(x.dtype).T
        outputs.append(y)
    return tuple(outputs)


class _SharedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, frozen: list[tuple[Tensor, Tensor | None]], entrance: Entrance, count: int, *given: Tensor | None
    ) -> tuple[Tensor, ...]:
        values, down, ups = given[:count], given[count], given[count + 1 :]
        x, kept = entrance.there(*values)  # pyright: ignore[reportArgumentType]
        h = None if down is None else x @ down.T
        outputs, parts = [], _parts(h, ups)
        for (weight, bias), part, up in zip(frozen, parts, ups, strict=True):
            y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
            outputs.append(y if part is None or up is None else y.addmm_(part, up.T))
        ctx.frozen, ctx.entrance, ctx.count = [weight for weight, _ in frozen], entrance, count
        ctx.save_for_backward(*values, down, *ups, h, kept)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *given, h, kept = ctx.saved_tensors
        values, down, ups = given[: ctx.count], given[ctx.count], given[ctx.count + 1 :]
        changes = [None if up is None else grad @ up for grad, up in zip(grads, ups, strict=True)]
        there = [change for change in changes if change is not None]
        dh = None if not there else there[0] if len(there) == 1 else torch.cat(there, 1)
        d_ups = [None if part is None else grad.T @ part for grad, part in zip(grads, _parts(h, ups), strict=True)]
        d_down = None if dh is None else dh.T @ ctx.entrance.again(kept, *values)
        d_values: tuple[Tensor | None, ...] = (None,) * ctx.count
        if any(ctx.needs_input_grad[3 : 3 + ctx.count]):
            dx = grads[0] @ ctx.frozen[0]
            for grad, weight in zip(grads[1:], ctx.frozen[1:], strict=True):
                dx.addmm_(grad, weight)
            if dh is not None:
                dx.addmm_(dh, down)
            d_values = ctx.entrance.back(kept, dx, *values)
        return None, None, None, *d_values, d_down, *d_ups


def _parts(h: Tensor | None, ups: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The columns of h that are each piece's."""
    parts: list[Tensor | None] = []
    first = 0
    for up in ups:
        if up is None or h is None:
            parts.append(None)
        else:
            parts.append(h[:, first : first + up.shape[1]])
            first += up.shape[1]
    return parts
