"""Causal attention over packed sequences: each sequence attends only to itself.

    S = s Q K^T,  l = log(sum(exp S)),  P = exp(S - l),  O = P V          row i of a sequence sees columns up to i
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(P dP)),  dQ = s dS K,  dK = s dS^T Q

On a CPU the forward pass is torch's flash kernel, which is faster than matrix products where the processor has AMX. The
backward pass is made of matrix products, which torch's backward kernel does not reach on any CPU: a block of queries
at a time, against the keys up to the block's end. So the part above the diagonal is computed only inside a block, and
the full score matrix never exists. Only Q, K, V and l are saved. The backward pass takes P from l without another
softmax: l stands in three more columns of Q, its rounded value and what rounding lost twice, against columns of -1 in
K. Query heads that share a key head are rows of one matrix. On a GPU torch's own kernels compute both passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128
ALIGNED = 32
"""Keys are read in multiples of this many, and the columns of a product are filled up to them: the width of a tile of
matrix units such as AMX."""
PARTS = 3
"""bfloat16 numbers whose sum is a float32 number. S - l is cut at 0, since with scores of 1e8 rounding alone could make
it so large that a weight is infinite."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Map q (H, T, D), k and v (K, T, D) to (T, H, D). `lengths` of the sequences add up to T, and K divides H."""
    if q.device.type != "cpu":
        return plain_causal_attention(q, k, v, lengths, scale)
    return _CausalAttention.apply(q, k, v, tuple(lengths), scale)


def plain_causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Compute the same with torch, one sequence at a time: on a GPU, and as the reference for tests."""
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=True)
        for part in zip(*(values[None].split(list(lengths), 2) for values in (q, k, v)), strict=True)
    ]
    return torch.cat(parts, 2)[0].transpose(0, 1)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        out, log_sums = (_by_flash if q.shape[2] == v.shape[2] else _by_products)(q, k, v, lengths, scale)
        ctx.save_for_backward(q, k, v, log_sums)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, log_sums = ctx.saved_tensors
        queries, keys = _with_log_sums(q, k, log_sums / ctx.scale)
        dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        for start, first, end, is_last in _blocks(ctx.lengths):
            rows, columns = slice(first, end), slice(start, end)
            asking = queries[:, rows].reshape(k.shape[0], -1, queries.shape[2])
            arriving = grad[rows].transpose(0, 1).reshape(k.shape[0], -1, v.shape[2])
            weights = _product(asking, keys[:, columns].mT, ctx.scale).clamp_max_(0.0).exp_()
            weights.view(q.shape[0], end - first, end - start)[:, :, first - start :].tril_()
            change = arriving @ v[:, columns].mT
            change = torch.ops.aten._softmax_backward_data(change, weights, -1, weights.dtype)
            dq[:, rows] = (change @ k[:, columns]).view(q.shape[0], end - first, -1)
            for sums, part in (
                (dk[:, columns], change.mT @ asking[:, :, : k.shape[2]]), (dv[:, columns], weights.mT @ arriving)
            ):  # fmt: skip
                sums.copy_(part) if is_last else sums.add_(part)
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None


def _by_flash(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and l (H, T) of torch's flash kernel on a CPU.

    It is faster where the number of keys is a multiple of ALIGNED. So a sequence is given some keys of the next one,
    or zeros after the last; no query sees them, since query i sees keys up to i.
    """
    out, parts, start = q.new_empty(q.shape[1], q.shape[0], q.shape[2]), [], 0
    for length in lengths:
        keys = length + -length % ALIGNED
        seen, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None, :, start : start + length], _rows(k, start, keys), _rows(v, start, keys), 0.0, True, scale=scale
        )
        out[start : start + length] = seen[0].transpose(0, 1)
        parts.append(sums[0])
        start += length
    return out, torch.cat(parts, 1)


def _rows(values: Tensor, start: int, count: int) -> Tensor:
    """(1, K, count, D): rows of `values` (K, T, D) from `start` on, and zeros after the last."""
    rows = values[None, :, start : start + count]
    missing = count - rows.shape[2]
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _by_products(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Compute the same by matrix products, where values are not as wide as queries."""
    heads, tokens, width = q.shape
    out, log_sums = q.new_empty(tokens, heads, v.shape[2]), q.new_empty(heads, tokens, dtype=_exact(q.dtype))
    for start, first, end, _ in _blocks(lengths):
        asking = q[:, first:end].reshape(k.shape[0], -1, width)
        scores = _product(asking, k[:, start:end].mT, scale).view(heads, end - first, -1).to(log_sums.dtype)
        scores[:, :, first - start :] += _above(end - first, scores.dtype, scores.device)
        sums = scores.logsumexp(-1, keepdim=True)
        log_sums[:, first:end] = sums[:, :, 0]
        weights = scores.sub_(sums).exp_().to(q.dtype).view(k.shape[0], -1, end - start)
        out[first:end] = (weights @ v[:, start:end]).view(heads, end - first, -1).transpose(0, 1)
    return out, log_sums


def _with_log_sums(q: Tensor, k: Tensor, log_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries (H, T, D + ALIGNED) and keys (K, T, D + ALIGNED), whose products are those of `q` and `k` less
    `log_sums` (H, T)."""
    parts = []
    for _ in range(PARTS):
        parts.append(log_sums.to(q.dtype))
        log_sums = log_sums - parts[-1]
    zeros = q.new_zeros(1).expand(*q.shape[:2], ALIGNED - PARTS)
    less = k.new_full((1,), -1.0).expand(*k.shape[:2], ALIGNED)
    return torch.cat((q, torch.stack(parts, 2), zeros), 2), torch.cat((k, less), 2)


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left.new_zeros(()), left, right, beta=0, alpha=scale)


def _blocks(lengths: tuple[int, ...]) -> Iterator[tuple[int, int, int, bool]]:
    """Yield for each block of queries where its sequence starts, where the block starts and ends, and whether it is the
    last one of its sequence. The blocks of a sequence come from the last, which sees all keys, to the first."""
    start = 0
    for length in lengths:
        for first in reversed(range(0, length, BLOCK)):
            end = min(first + BLOCK, length)
            yield start, start + first, start + end, end == length
        start += length


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@lru_cache(maxsize=BLOCK)
def _above(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the causal mask (rows, rows): minus infinity where a column comes after its row."""
    return torch.full((rows, rows), float("-inf"), dtype=dtype, device=device).triu(1)
