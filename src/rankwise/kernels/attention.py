"""Causal attention over packed sequences by matrix products: each sequence attends only to itself.

    P = softmax(s Q K^T),  O = P V           row i of a sequence sees columns up to i
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(P dP)),  dQ = s dS K,  dK = s dS^T Q

Queries are processed in blocks, each against the keys up to the block's end. So the part above the diagonal is computed
only inside a block, and the full score matrix never exists. P is recomputed in the backward pass, so only Q, K and V
are saved. Query heads that share a key head are rows of one matrix. On a CPU this runs at the speed of matrix products,
which torch's flash kernel does not reach, least of all in its backward pass; on a GPU torch's own kernels are faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Map q (H, T, D), k and v (K, T, D) to (T, H, D). `lengths` of the sequences add up to T, and K divides H."""
    return _CausalAttention.apply(q, k, v, tuple(lengths), scale)


def plain_causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Compute the same with torch, one sequence at a time, as the reference for tests."""
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=True)
        for part in zip(*(values[None].split(list(lengths), 2) for values in (q, k, v)), strict=True)
    ]
    return torch.cat(parts, 2)[0].transpose(0, 1)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        heads, tokens, _ = q.shape
        out = q.new_empty(tokens, heads, v.shape[2])
        for start, first, end in _blocks(lengths):
            weights, _ = _weights(q, k, start, first, end, scale)
            seen = weights @ v[:, start:end]
            out[first:end] = seen.view(heads, end - first, -1).transpose(0, 1)
        ctx.save_for_backward(q, k, v)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        for start, first, end in _blocks(ctx.lengths):
            weights, queries = _weights(q, k, start, first, end, ctx.scale)
            into = grad[first:end].transpose(0, 1).reshape(k.shape[0], -1, v.shape[2])
            dv[:, start:end] += weights.mT @ into
            arrived = into @ v[:, start:end].mT
            change = torch.ops.aten._softmax_backward_data(arrived, weights, -1, weights.dtype)
            dq[:, first:end] = (change @ k[:, start:end]).view(q.shape[0], end - first, -1)
            dk[:, start:end] += change.mT @ queries
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None


def _blocks(lengths: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield for each block of queries where its sequence starts, and where the block starts and ends."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, BLOCK):
            yield start, first, min(first + BLOCK, start + length)
        start += length


def _weights(q: Tensor, k: Tensor, start: int, first: int, end: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention weights (K, H/K * rows, columns) and the queries in that layout."""
    groups, rows = k.shape[0], end - first
    queries = q[:, first:end].reshape(groups, -1, q.shape[2])
    scores = torch.baddbmm(q.new_zeros(()), queries, k[:, start:end].mT, beta=0, alpha=scale)
    scores[:, :, -rows:] += _above(rows, queries.shape[1] // rows, q.dtype, q.device)
    return torch.softmax(scores, -1), queries


@lru_cache(maxsize=2 * BLOCK)
def _above(rows: int, repeats: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the causal mask (repeats * rows, rows): minus infinity where a column comes after its row."""
    return torch.full((rows, rows), float("-inf"), dtype=dtype, device=device).triu(1).repeat(repeats, 1)
