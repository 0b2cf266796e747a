"""Attention without a mask: outputs and gradients of torch's own, for rows that do not see each other."""

from __future__ import annotations

import pytest
import torch

from kit.plain_kernels import plain_full_attention
from rankwise.kernels.attention import full_attention

SHAPES = [(1, 1, 1, 4), (3, 5, 2, 4), (2, 17, 3, 8)]
"""Rows, positions of each, heads, and width of a head."""


def inputs(rows: int, positions: int, heads: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, rows * positions, heads * width, generator=generator, dtype=torch.float64).to(dtype)
    return [one.clone().requires_grad_(True) for one in drawn[:3]] + [drawn[3]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_torchs(shape: tuple[int, int, int, int]) -> None:
    q, k, v, grad = inputs(*shape, torch.float64)
    ours = full_attention(q, k, v, shape[0], shape[2], 0.3)
    gradients = torch.autograd.grad(ours, (q, k, v), grad)
    theirs = plain_full_attention(q, k, v, shape[0], shape[2], 0.3)
    expected = torch.autograd.grad(theirs, (q, k, v), grad)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert all(
        torch.allclose(one, other, rtol=1e-10, atol=1e-12) for one, other in zip(gradients, expected, strict=True)
    )


def test_a_row_does_not_see_another() -> None:
    q, k, v, _ = inputs(2, 5, 2, 4, torch.float64)
    before = full_attention(q, k, v, 2, 2, 0.5)
    with torch.no_grad():
        for one in (q, k, v):
            one[5:] = one[5:].flip(0) * 3
    after = full_attention(q, k, v, 2, 2, 0.5)
    assert torch.equal(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padding_is_seen_by_nobody(dtype: torch.dtype) -> None:
    q, k, v, grad = inputs(3, 6, 2, 4, dtype)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] + [False] * 5])
    ours = full_attention(q, k, v, 3, 2, 0.4, real)
    gradients = torch.autograd.grad(ours, (q, k, v), grad)
    theirs = plain_full_attention(q, k, v, 3, 2, 0.4, real)
    expected = torch.autograd.grad(theirs, (q, k, v), grad)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(gradients, expected, strict=True))
    assert gradients[2].view(3, 6, -1)[1, 4:].eq(0).all(), "no loss depends on a value at padding"
