"""Prepared products are the plain ones, for every caller of a linear layer, and are made where they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.kernels import prepacked as module_under_test
from rankwise.kernels.prepacked import prepacked_weights

pytestmark = pytest.mark.skipif(
    not module_under_test._can_be_packed(torch.empty(512, 512)), reason="this processor has no prepared products"
)
WIDTH = 320


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def prepacked_weights(self):
        return sum("_linear_pointwise" in name for name in self.names)


def tower(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH, bias=bias), nn.Tanh(), nn.Linear(2 * WIDTH, WIDTH)).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 7), (1, 200)])
@torch.inference_mode()
def test_a_prepared_product_is_as_near_to_the_exact_one_as_the_plain_one(shape, bias):
    model, x = tower(bias=bias), torch.randn(*shape, WIDTH)
    exact = tower(bias=bias).double()(x.double())
    with prepacked_weights(model), Counted() as counted:
        y = model(x)
    assert counted.prepacked_weights() == 2
    assert y.shape == exact.shape
    worst = (model(x) - exact).abs().max()
    assert (y - exact).abs().max() <= 4 * worst + 1e-7


@torch.inference_mode()
def test_outside_nothing_is_prepared_and_inside_only_this_model():
    model, other, x = tower(), tower(), torch.ones(2, WIDTH)
    counted = Counted()
    with prepacked_weights(model), counted:
        other(x)
    with counted:
        model(x)
    assert counted.prepacked_weights() == 0


@torch.inference_mode()
def test_an_output_layer_that_shares_the_embeddings_weight_is_prepared():
    embedding, head = nn.Embedding(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
    head.weight = embedding.weight
    with prepacked_weights(nn.ModuleList([embedding, head])), Counted() as counted:
        y = nn.functional.linear(embedding.weight, embedding.weight)
    assert counted.prepacked_weights() == 1
    torch.testing.assert_close(y, embedding.weight @ embedding.weight.T, rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_weights_that_have_changed_since_are_laid_out_anew():
    model, x = tower(), torch.randn(3, WIDTH)
    with prepacked_weights(model):
        before = model(x)
    model[2].weight.mul_(2)
    model[2].bias.mul_(2)
    with prepacked_weights(model):
        torch.testing.assert_close(model(x), 2 * before)


@torch.inference_mode()
def test_bfloat16_is_rounded_once_from_the_exact_product():
    if not module_under_test._can_be_packed(torch.empty(512, 512, dtype=torch.bfloat16)):
        pytest.skip("this processor has no bfloat16 products")
    layer, x = nn.Linear(WIDTH, WIDTH, bias=False).bfloat16(), torch.randn(5, WIDTH).bfloat16()
    with prepacked_weights(layer), Counted() as counted:
        y = layer(x)
    assert counted.prepacked_weights() == 1 and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x.float() @ layer.weight.float().T, rtol=2**-7, atol=2**-9)


def modes():
    return torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("why", ["memory is short", "memory fails", "nothing to lay out"])
@torch.inference_mode()
def test_where_nothing_is_laid_out_nothing_is_in_the_way(monkeypatch, why):
    model, x = tower(), torch.randn(3, WIDTH)
    if why == "memory is short":
        bytes_of_both = 2 * 4 * 2 * WIDTH**2
        monkeypatch.setattr(module_under_test, "available_memory", lambda: 2 * bytes_of_both - 1)
    elif why == "memory fails":
        monkeypatch.setattr(module_under_test, "_pack", lambda weight: torch.empty(2**46))
    else:
        model = nn.Sequential(model[1])
    with prepacked_weights(model):
        assert not modes()
        assert torch.equal(model(x), tower()(x) if len(model) > 1 else x.tanh())


@torch.inference_mode()
def test_what_the_prepared_product_would_read_wrongly_goes_the_plain_way():
    layer, x = nn.Linear(WIDTH, WIDTH), torch.randn(3, WIDTH)
    layer.bias.data = torch.randn(2 * WIDTH)[::2]
    plain = layer(x)
    with prepacked_weights(layer):
        assert torch.equal(layer(x), plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_gradients_are_those_of_the_plain_product():
    model, x = tower(), torch.randn(3, WIDTH, requires_grad=True)
    with prepacked_weights(model):
        model(x).sum().backward()
    assert x.grad is not None and model[0].weight.grad is not None
