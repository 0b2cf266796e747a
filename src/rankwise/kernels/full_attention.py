"""Attention in both directions over rows of equal length, such as the patches of images or padded texts.

    P = softmax(s Q K^T),  O = P V           every position of a row sees all positions of the row, but for padding
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(P dP)),  dQ = s dS K,  dK = s dS^T Q

It is made of matrix products. P is recomputed in the backward pass, so only Q, K and V are saved. On a CPU this runs at
the speed of matrix products, which torch's flash kernel does not reach, least of all in its backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int, scale: float, real: Tensor | None = None
) -> Tensor:
    """Map q, k and v (rows * T, heads * D) to (rows * T, heads * D). `real` (rows, T) is false at padding, which no
    position sees; None where there is none."""
    return _FullAttention.apply(q, k, v, rows, heads, scale, real)


def plain_full_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int, scale: float, real: Tensor | None = None
) -> Tensor:
    """Compute the same with torch, as the reference for tests."""
    queries, keys, values = (_by_head(one, rows, heads).unflatten(0, (rows, heads)) for one in (q, k, v))
    mask = None if real is None else real[:, None, None, :]
    seen = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, mask, scale=scale)
    return seen.transpose(1, 2).reshape(q.shape)


class _FullAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int, scale: float, real: Tensor | None
    ) -> Tensor:
        queries, keys, values = (_by_head(one, rows, heads) for one in (q, k, v))
        ctx.save_for_backward(queries, keys, values)
        ctx.rows, ctx.heads, ctx.scale, ctx.real = rows, heads, scale, real
        return _together(_weights(queries, keys, scale, real) @ values, rows, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, keys, values = ctx.saved_tensors
        weights = _weights(queries, keys, ctx.scale, ctx.real)
        into = _by_head(grad, ctx.rows, ctx.heads)
        dv = weights.mT @ into
        change = torch.ops.aten._softmax_backward_data(into @ values.mT, weights, -1, weights.dtype)
        zero = change.new_zeros(())
        dq = torch.baddbmm(zero, change, keys, beta=0, alpha=ctx.scale)
        dk = torch.baddbmm(zero, change.mT, queries, beta=0, alpha=ctx.scale)
        return *(_together(one, ctx.rows, ctx.heads) for one in (dq, dk, dv)), None, None, None, None


def _by_head(values: Tensor, rows: int, heads: int) -> Tensor:
    """(rows * T, heads * D) to (rows * heads, T, D)."""
    tokens, width = values.shape
    split = values.view(rows, tokens // rows, heads, width // heads)
    return split.transpose(1, 2).reshape(rows * heads, tokens // rows, width // heads)


def _together(values: Tensor, rows: int, heads: int) -> Tensor:
    """(rows * heads, T, D) to (rows * T, heads * D)."""
    _, tokens, width = values.shape
    return values.view(rows, heads, tokens, width).transpose(1, 2).reshape(rows * tokens, heads * width)


def _weights(queries: Tensor, keys: Tensor, scale: float, real: Tensor | None) -> Tensor:
    scores = torch.baddbmm(queries.new_zeros(()), queries, keys.mT, beta=0, alpha=scale)
    if real is not None:
        rows, tokens = real.shape
        scores.view(rows, -1, tokens, tokens).masked_fill_(~real[:, None, None, :], float("-inf"))
    return torch.softmax(scores, -1)
