"""Laws of products in int8: compiled functions give the bits of their twins, what is lost is bounded, and what
several products share changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.plain_kernels import plain_shared_linears
from rankwise.base.precision import multiplies_int8
from rankwise.kernels.linear import Identity, LinearSpec, shared_linears
from rankwise.kernels.quantized import formats
from rankwise.kernels.quantized import gguf as gguf_blocks
from rankwise.kernels.quantized.formats import (
    FORMATS,
    Int8Products,
    dequantize_sums,
    is_compiled,
    multiply_in_int8,
    plain_dequantize_sums,
    plain_quantize_rows,
    quantize_rows,
)
from rankwise.kernels.quantized.tensor import QuantizedTensor, unpacked

ROWS, INPUTS, OUTPUTS = 40, 192, 48
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
compiled = pytest.mark.skipif(not is_compiled(), reason="there is no C++ compiler")
exact = pytest.mark.skipif(not multiplies_int8(), reason="sums are cut off on this processor")


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(apart: tuple[int, ...] = (), outputs: int = OUTPUTS, dtype: torch.dtype = torch.float32) -> QuantizedTensor:
    parts = FORMATS["int8"].pack(drawn(outputs, INPUTS, seed=outputs))
    return QuantizedTensor(Int8Products(outliers=apart), parts, (outputs, INPUTS), dtype)


def lost(value: Tensor, true: Tensor) -> float:
    return float((value.detach().double() - true.double()).norm() / true.double().norm())


@compiled
@dtypes
@pytest.mark.parametrize("columns", [1, 37, INPUTS])
@pytest.mark.parametrize("scaled", [False, True])
def test_inputs_become_the_same_whole_numbers_as_in_the_twin(dtype, columns, scaled):
    x = drawn(ROWS, columns, dtype=dtype)
    x[3], x[5, 0] = 0, 1e30
    factors = drawn(columns, seed=1).abs() if scaled else None
    for one, other in zip(quantize_rows(x, factors), plain_quantize_rows(x, factors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("function", [quantize_rows, plain_quantize_rows])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_visible(function, value):
    x = drawn(3, 8)
    x[1, 2] = value
    numbers, scales = function(x)
    y = dequantize_sums(numbers.int(), scales, None, None, None, torch.float32)
    assert scales.isfinite().tolist() == [True, False, True] and not y[1].isfinite().all() and y[0].isfinite().all()


@compiled
@dtypes
@pytest.mark.parametrize("factors", [None, drawn(OUTPUTS, seed=1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_sums_become_the_same_outputs_as_in_the_twin(dtype, factors, bias, adds):
    sums = torch.randint(-(10**7), 10**7, (ROWS, OUTPUTS), dtype=torch.int32)
    scales = drawn(ROWS, seed=2)
    sums[0], scales[0] = 256 + torch.arange(OUTPUTS), 1.0  # of which bfloat16 has every second
    given = sums, scales, factors, drawn(OUTPUTS, dtype=dtype, seed=3) if bias else None
    into = [drawn(ROWS, OUTPUTS, dtype=dtype, seed=4) if adds else None for _ in range(2)]
    one, other = dequantize_sums(*given, into[0], dtype), plain_dequantize_sums(*given, into[1], dtype)
    assert torch.equal(one, other) and one.dtype == dtype and (not adds or one is into[0])


@exact
@dtypes
@pytest.mark.parametrize("apart", [(), (0, 7)])
def test_a_layer_and_its_gradient_lose_little(dtype, apart):
    layer = nn.Linear(INPUTS, OUTPUTS).to(dtype)
    layer.weight = nn.Parameter(packed(apart, dtype=dtype), requires_grad=False)
    x, grad = drawn(2, ROWS, INPUTS, dtype=dtype).requires_grad_(), drawn(2, ROWS, OUTPUTS, dtype=dtype, seed=5)
    y = layer(x)
    y.backward(grad)
    true = unpacked(layer.weight).double()
    assert lost(y, x.detach().double() @ true.T + layer.bias.detach().double()) < 0.015
    assert x.grad is not None and lost(x.grad, grad.double() @ true) < 0.015


@exact
def test_outlier_columns_save_the_others_from_one_that_is_far_above_them():
    x = drawn(ROWS, INPUTS)
    x[:, 7] *= 300
    weight = unpacked(packed())
    others = x.clone()
    others[:, 7] = 0
    beside = [x @ packed(apart).T - (x - others) @ weight.T for apart in ((), (7,))]
    without, kept = (lost(one, others @ weight.T) for one in beside)
    assert without > 0.3 and kept < 0.015


def dense(specs):
    return [replace(spec, weight=unpacked(spec.weight)) for spec in specs]


@exact
@pytest.mark.parametrize("apart", [((), ()), ((), (3,)), ((3,), (3,))])
@pytest.mark.parametrize("learned", [False, True])
def test_layers_that_share_an_input_give_what_each_gives_alone(apart, learned):
    specs = []
    for columns, outputs in zip(apart, (OUTPUTS, 16), strict=True):
        A, B = (drawn(4, INPUTS), drawn(outputs, 4)) if learned else (None, None)
        specs.append(LinearSpec(packed(columns, outputs), drawn(outputs), A, B))
    x = drawn(ROWS, INPUTS)
    together = shared_linears(Identity(), [x], specs)
    for y, spec, true in zip(together, specs, plain_shared_linears(x, dense(specs)), strict=True):
        assert lost(y, true) < 0.015
        assert torch.equal(y, shared_linears(Identity(), [x], [spec])[0])


@exact
def test_a_correction_below_the_spacing_of_bfloat16_is_there_on_average():
    x, A, B = drawn(2000, INPUTS, dtype=torch.bfloat16), drawn(1, INPUTS), torch.full((OUTPUTS, 1), 1e-4)
    weight = packed(dtype=torch.bfloat16)
    ((plain,), (changed,)) = (
        shared_linears(Identity(), [x], [LinearSpec(weight, None, *pair)]) for pair in ((None, None), (A, B))
    )
    wanted = x.double() @ A.double().T @ B.double().T
    share = ((changed.double() - plain.double()) * wanted).sum() / wanted.square().sum()
    assert 0.8 < share < 1.2


@compiled
def test_without_a_compiler_the_bits_are_the_same(monkeypatch):
    x, weight = drawn(ROWS, INPUTS, dtype=torch.bfloat16), packed((1,), dtype=torch.bfloat16)
    usual = x @ weight.T
    monkeypatch.setattr(formats, "_library", lambda: None)
    assert torch.equal(x @ weight.T, usual)


def test_an_input_that_changed_is_quantised_again():
    x, weight = drawn(ROWS, INPUTS), packed()
    before = x @ weight.T
    assert torch.equal(x.clone() @ weight.T, before) and torch.equal(x @ weight.T, before)
    x.mul_(-1)
    assert torch.equal(x @ weight.T, -before)


def test_layers_compute_the_same_in_inference_mode():
    layer = nn.Linear(INPUTS, OUTPUTS)
    layer.weight = nn.Parameter(packed((1,)), requires_grad=False)
    x = drawn(2, ROWS, INPUTS)
    usual = layer(x).detach()
    with torch.inference_mode():
        y = x.clone()
        assert torch.equal(layer(y), usual)
        y.mul_(2)
        assert torch.allclose(layer(y) - layer.bias, 2 * (usual - layer.bias), atol=1e-5)


def in_blocks(name: str) -> tuple[Any, ...]:
    """A matrix in a type of GGUF: its format and its only part."""
    stored = gguf.quantize(drawn(OUTPUTS, INPUTS, seed=7).numpy(), gguf.GGMLQuantizationType[name])
    return gguf_blocks.FORMATS[name], [torch.from_numpy(stored.view(np.uint8))]


@exact
@pytest.mark.parametrize("stored", ["nf4", "int8", "Q4_0", "Q5_1", "Q8_0", "F16"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_in_any_format_is_multiplied_in_int8_and_stays_what_it_is(stored, bias):
    if stored in FORMATS:
        given = FORMATS[stored], FORMATS[stored].pack(drawn(OUTPUTS, INPUTS, seed=7))
    else:
        given = in_blocks(stored)
    weight = QuantizedTensor(*given, (OUTPUTS, INPUTS), torch.float32)
    x, b = drawn(ROWS, INPUTS), drawn(OUTPUTS, seed=2) if bias else None
    numbers, products = weight.unpacked(), nn.functional.linear(x, weight, b)
    index = torch.tensor([3, 0, 3])
    for apart in ((), (1, 5), ()):
        multiply_in_int8(weight, apart)
        assert 0 < lost(nn.functional.linear(x, weight, b), products) < 0.02
        assert 0 < lost(drawn(ROWS, OUTPUTS) @ weight, drawn(ROWS, OUTPUTS) @ numbers) < 0.02
        assert torch.equal(weight.unpacked(), numbers) and weight.format.name == given[0].name
        assert torch.equal(nn.functional.embedding(index, weight), numbers[index])
    multiply_in_int8(weight, None)
    assert weight.format is given[0] and all(one is two for one, two in zip(weight.parts, given[1], strict=True))
    assert torch.equal(nn.functional.linear(x, weight, b), products)
