"""KL and its gradient, computed in blocks, equal autograd's; a model beside itself has none."""

from __future__ import annotations

import pytest
import torch

from kit.plain_kernels import plain_divergence
from rankwise.kernels.loss import COMPARED_ROWS, divergence, head_divergence


def drawn(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, COMPARED_ROWS, 2 * COMPARED_ROWS + 5])
def test_value_and_gradient_equal_autograds(count: int) -> None:
    hidden, base, weight = drawn(count, 16, 0).requires_grad_(), drawn(count, 16, 1), drawn(50, 16, 2)
    expected = plain_divergence(hidden @ weight.T, base @ weight.T)
    (wanted_gradient,) = torch.autograd.grad(3 * expected, hidden)
    total = head_divergence(hidden, weight, base)
    assert torch.allclose(total, expected, rtol=1e-12) and total > 1
    assert torch.allclose(torch.autograd.grad(3 * total, hidden)[0], wanted_gradient, rtol=1e-10, atol=1e-12)
    by_logits = divergence(hidden @ weight.T, base @ weight.T)
    assert torch.allclose(by_logits, expected, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(3 * by_logits, hidden)[0], wanted_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_beside_itself_is_exactly_where_it_was(dtype: torch.dtype) -> None:
    hidden, weight = drawn(70, 16, 0).to(dtype).requires_grad_(), drawn(50, 16, 2).to(dtype)
    total = head_divergence(hidden, weight, hidden.detach())
    assert total.item() == 0.0 and total.dtype == torch.float32
    assert not torch.autograd.grad(total, hidden)[0].any()
