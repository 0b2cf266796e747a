"""What the fused kernels compute, written with plain operations of torch and autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.kernels.linear import LinearSpec
from rankwise.kernels.norm import Activation


def plain_rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), -1)
    first, second = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-second, first), -1) * sin, rest), -1)


def plain_full_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: int, heads: int, scale: float, real: Tensor | None = None
) -> Tensor:
    queries, keys, values = (
        one.unflatten(0, (rows, -1)).unflatten(-1, (heads, -1)).transpose(1, 2) for one in (q, k, v)
    )
    mask = None if real is None else real[:, None, None, :]
    seen = F.scaled_dot_product_attention(queries, keys, values, mask, scale=scale)
    return seen.transpose(1, 2).reshape(q.shape)


def plain_shared_linears(x: Tensor, specs: Sequence[LinearSpec]) -> tuple[Tensor, ...]:
    outputs = []
    for spec in specs:
        y = F.linear(x, spec.weight, spec.bias)
        if spec.A is not None and spec.B is not None:
            y = y + x @ spec.A.to(x.dtype).T @ spec.B.to(x.dtype).T
        outputs.append(y)
    return tuple(outputs)


def plain_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def plain_divergence(logits: Tensor, base: Tensor) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = (torch.log_softmax(one, -1, dtype=dtype) for one in (base, logits))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def plain_activated(activation: Activation, *values: Tensor) -> Tensor:
    form = "tanh" if activation == "gelu-tanh" else "none"
    active = F.silu(values[0]) if activation == "silu" else F.gelu(values[0], approximate=form)
    return active if len(values) == 1 else active * values[1]


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def plain_shifted_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (normed * (1.0 + weight.to(exact.dtype))).to(x.dtype)


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(exact, -1, correction=0, keepdim=True)
    return (weight * ((exact - mean) * torch.rsqrt(variance + eps)) + bias).to(x.dtype)
