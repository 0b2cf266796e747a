"""Causal attention over packed sequences: each sequence attends only to itself.

    S = s Q K^T,  l = log(sum(exp S)),  P = exp(S - l),  O = P V          row i of a sequence sees columns up to i
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(P dP)),  dQ = s dS K,  dK = s dS^T Q

On a CPU the forward pass is torch's flash kernel, which is faster than matrix products where the processor has AMX. The
backward pass is made of matrix products, which torch's backward kernel does not reach on any CPU: a block of queries
at a time, against the keys up to the block's end. So the part above the diagonal is computed only inside a block, and
the full score matrix never exists. Only Q, K, V and l are saved. The backward pass takes P from l without another
softmax: l stands in three more columns of Q, its rounded value and what rounding lost twice, against columns of -1 in
K. Query heads that share a key head are rows of one matrix. On a GPU torch's own kernels compute both passes.

Rotary position embeddings (Su et al. 2021) on the two halves of a head, as one autograd function.

    y_1 = x_1 cos - x_2 sin,   y_2 = x_2 cos + x_1 sin

The gradient is the inverse rotation, so nothing of x is saved. If the angles cover only the first part of a head (as in
GPT-NeoX), the halves of that part are rotated and the rest stays unchanged.

Attention in both directions over rows of equal length, such as the patches of images or padded texts.

    P = softmax(s Q K^T),  O = P V           every position of a row sees all positions of the row, but for padding
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(P dP)),  dQ = s dS K,  dK = s dS^T Q

It is made of matrix products. P is recomputed in the backward pass, so only Q, K and V are saved. On a CPU this runs at
the speed of matrix products, which torch's flash kernel does not reach, least of all in its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (H, T, D) by angles (T, D), or (T, fewer than D), whose two halves are equal."""
    return _Rotated.apply(x, cos, sin)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    width = cos.shape[-1]
    half = width // 2
    y = torch.empty_like(x)
    torch.mul(x[..., :width], cos, out=y[..., :width])
    y[..., width:] = x[..., width:]
    y[..., :half].addcmul_(x[..., half:width], sin[..., :half], value=-way)
    y[..., half:width].addcmul_(x[..., :half], sin[..., half:], value=way)
    return y


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


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int, scale: float, real: Tensor | None = None
) -> Tensor:
    """Map q, k and v (rows * T, heads * D) to (rows * T, heads * D). `real` (rows, T) is false at padding, which no
    position sees; None where there is none."""
    return _FullAttention.apply(q, k, v, rows, heads, scale, real)


class _FullAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int, scale: float, real: Tensor | None
    ) -> Tensor:
        queries, keys, values = (_by_head(one, rows, heads) for one in (q, k, v))
        ctx.save_for_backward(queries, keys, values)
        ctx.rows, ctx.heads, ctx.scale, ctx.real = rows, heads, scale, real
        return _joined_heads(_weights(queries, keys, scale, real) @ values, rows, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, keys, values = ctx.saved_tensors
        weights = _weights(queries, keys, ctx.scale, ctx.real)
        into = _by_head(grad, ctx.rows, ctx.heads)
        dv = weights.mT @ into
        change = torch.ops.aten._softmax_backward_data(into @ values.mT, weights, -1, weights.dtype)
        dq, dk = _product(change, keys, ctx.scale), _product(change.mT, queries, ctx.scale)
        return *(_joined_heads(one, ctx.rows, ctx.heads) for one in (dq, dk, dv)), None, None, None, None


def _by_head(values: Tensor, rows: int, heads: int) -> Tensor:
    """(rows * T, heads * D) to (rows * heads, T, D)."""
    tokens, width = values.shape
    split = values.view(rows, tokens // rows, heads, width // heads)
    return split.transpose(1, 2).reshape(rows * heads, tokens // rows, width // heads)


def _joined_heads(values: Tensor, rows: int, heads: int) -> Tensor:
    """(rows * heads, T, D) to (rows * T, heads * D)."""
    _, tokens, width = values.shape
    return values.view(rows, heads, tokens, width).transpose(1, 2).reshape(rows * tokens, heads * width)


def _weights(queries: Tensor, keys: Tensor, scale: float, real: Tensor | None) -> Tensor:
    scores = _product(queries, keys.mT, scale)
    if real is not None:
        rows, tokens = real.shape
        scores.view(rows, -1, tokens, tokens).masked_fill_(~real[:, None, None, :], float("-inf"))
    return torch.softmax(scores, -1)
