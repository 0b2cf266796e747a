"""Laws of weights in fewer bits: a layer computes with the numbers that its weight is unpacked to, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kit.plain_kernels import plain_shared_linears
from rankwise.kernels.linear import Identity, LinearSpec, shared_linears
from rankwise.kernels.quantized.formats import FORMATS
from rankwise.kernels.quantized.nf4 import (
    LEVELS,
    block_maxima,
    dynamic_values,
    nearest,
    plain_block_maxima,
    plain_unpacked,
)
from rankwise.kernels.quantized.tensor import QuantizedTensor, is_quantized, stored_bytes, unpacked

SHAPE = (48, 192)
names = pytest.mark.parametrize("name", FORMATS)


def packed(name: str, shape: tuple[int, int] = SHAPE, dtype: torch.dtype = torch.float32) -> QuantizedTensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return QuantizedTensor(FORMATS[name], FORMATS[name].pack(weight), shape, dtype)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-6 * other.norm())


@names
def test_a_layer_and_its_gradient_are_those_of_the_unpacked_weight(name: str) -> None:
    layer, twin = nn.Linear(192, 48), nn.Linear(192, 48)
    layer.weight = nn.Parameter(packed(name), requires_grad=False)
    twin.load_state_dict({"weight": unpacked(layer.weight), "bias": layer.bias})
    x, grad = torch.randn(2, 5, 192), torch.randn(2, 5, 48)
    results = []
    for module in (layer, twin):
        own = x.clone().requires_grad_()
        y = module(own)
        y.backward(grad)
        results.append((y.detach(), own.grad))
    for one, other in zip(*results, strict=True):
        assert one is not None and other is not None and close(one, other)


@names
@pytest.mark.parametrize("bias", [True, False])
def test_the_shared_kernel_agrees_with_layers_one_by_one(name: str, bias: bool) -> None:
    weights = [packed(name), packed(name, (16, 192))]
    biases = [torch.randn(len(weight)) if bias else None for weight in weights]
    A, B = torch.randn(4, 192, requires_grad=True), torch.randn(48, 4, requires_grad=True)
    grads = []
    for dense in (False, True):
        x = torch.randn(7, 192, generator=torch.Generator().manual_seed(1)).requires_grad_()
        ours = [unpacked(weight) if dense else weight for weight in weights]
        specs = [LinearSpec(ours[0], biases[0], A, B), LinearSpec(ours[1], biases[1])]
        outputs = plain_shared_linears(x, specs) if dense else shared_linears(Identity(), [x], specs)
        given = [torch.randn(len(x), len(weight), generator=torch.Generator().manual_seed(2)) for weight in weights]
        grads.append(torch.autograd.grad(outputs, [x, A, B], given))
    assert all(close(one, other) for one, other in zip(*grads, strict=True))


@names
def test_nothing_unpacked_is_saved_for_the_backward_pass(name: str) -> None:
    weight, saved = packed(name), []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        F.linear(torch.randn(3, 192, requires_grad=True), weight)
    assert sum(value.nbytes for value in saved if not is_quantized(value)) < SHAPE[0] * SHAPE[1]


@names
def test_moving_casting_and_copying_leave_the_numbers(name: str) -> None:
    layer = nn.Linear(192, 48)
    layer.weight = nn.Parameter(packed(name), requires_grad=False)
    before = unpacked(layer.weight)
    for module in (copy.deepcopy(layer), copy.deepcopy(layer).to("cpu"), copy.deepcopy(layer).to(torch.float64)):
        assert is_quantized(module.weight) and not module.weight.requires_grad
        assert torch.equal(unpacked(module.weight).float(), before)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.weight.dtype == half(torch.randn(2, 192).bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(unpacked(half.weight).float(), before, rtol=2**-8, atol=0)
    assert unpacked(layer.to("meta").weight).is_meta


@names
def test_what_is_not_listed_sees_the_numbers_and_writing_is_refused(name: str) -> None:
    weight = packed(name)
    numbers = unpacked(weight)
    assert torch.equal(torch.linalg.vector_norm(weight, dim=1), torch.linalg.vector_norm(numbers, dim=1))
    assert torch.equal(unpacked(weight.T), numbers.T)
    assert torch.equal(weight[3], numbers[3]) and torch.equal(weight + 1, numbers + 1)
    with pytest.raises(RuntimeError, match="frozen"):
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="frozen"):
        weight.copy_(numbers)


@names
def test_a_transpose_is_not_unpacked(name: str) -> None:
    weight = packed(name)
    for turned in (weight.T, weight.t(), weight.transpose(0, 1), weight.permute(1, 0), weight.mT):
        assert is_quantized(turned) and torch.equal(unpacked(turned), unpacked(weight).T)
    assert torch.equal(unpacked(weight.permute(0, 1)), unpacked(weight))


@names
def test_rows_are_looked_up_without_the_rest(name: str) -> None:
    weight, index = packed(name), torch.tensor([[5, 0], [47, 5]])
    assert torch.allclose(F.embedding(index, weight), unpacked(weight)[index], rtol=1e-6, atol=0)
    assert torch.allclose(weight.index_select(0, index[0]), unpacked(weight)[index[0]], rtol=1e-6, atol=0)


@names
@pytest.mark.parametrize("kind", ["zeros", "one row of zeros", "constant", "huge"])
def test_extreme_weights_are_finite_and_near(name: str, kind: str) -> None:
    weight = torch.randn(SHAPE) * (1e30 if kind == "huge" else 1)
    if kind != "huge":
        weight[slice(None) if kind in ("zeros", "constant") else slice(3, 4)] = 1.5 if kind == "constant" else 0.0
    numbers = unpacked(QuantizedTensor(FORMATS[name], FORMATS[name].pack(weight), SHAPE, torch.float32))
    assert bool(torch.isfinite(numbers).all())
    assert (numbers - weight).norm() <= (0.12 if name == "nf4" else 0.01) * weight.norm()


@pytest.mark.parametrize("backward", [False, True])
def test_scales_of_int8_are_not_rounded_in_bfloat16(backward: bool) -> None:
    """Rounding differs from number to number; a rounded scale would be off by the same share in a whole column."""
    weight = packed("int8", dtype=torch.bfloat16)
    exact = unpacked(packed("int8"))
    generator = torch.Generator().manual_seed(5)
    if backward:  # the weight that explains g W best
        g = torch.randn(4096, 48, generator=generator).bfloat16()
        pairs = zip(torch.linalg.lstsq(g.float(), (g @ weight).float()).solution, exact, strict=True)
    else:
        x = torch.randn(2048, 192, generator=generator).bfloat16()
        pairs = zip((x @ weight.T).float().T, (x.float() @ exact.T).T, strict=True)
    slopes = torch.stack([(one @ other) / (other @ other) for one, other in pairs])
    assert (slopes - 1).abs().max() < 5e-4  # a bfloat16 number alone is off by up to 3.9e-3, and by 1e-3 on average


def test_int8_is_within_half_a_step_of_each_number() -> None:
    weight = torch.randn(SHAPE)
    numbers = unpacked(QuantizedTensor(FORMATS["int8"], FORMATS["int8"].pack(weight), SHAPE, torch.float32))
    assert bool(((numbers - weight).abs() <= weight.abs().amax(1, keepdim=True) / 254 * 1.0001).all())


def test_sizes_are_what_the_formats_promise() -> None:
    assert stored_bytes(packed("int8")) == 48 * 192 + 48 * 4
    blocks = 48 * 192 // 64
    assert stored_bytes(packed("nf4")) == 48 * 96 + blocks + 4 * (-(-blocks // 256)) + 4


def test_nf4_is_what_bitsandbytes_writes_and_reads() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 320, generator=torch.Generator().manual_seed(3))
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    codes, maxima, outer, mean = FORMATS["nf4"].pack(weight)
    assert torch.equal(codes.flatten(), theirs.flatten())
    assert torch.equal(dynamic_values(torch.device("cpu")), state.state2.code)
    assert torch.equal(outer, state.state2.absmax) and torch.equal(mean[0], state.offset)
    ours, other = (block_maxima(one, outer, mean) for one in (maxima, state.absmax))
    exact = weight.view(-1, 64).abs().amax(1)
    assert bool(((ours - exact).abs() <= (other - exact).abs()).all())  # nearer in the few cases beside a middle
    assert (maxima != state.absmax).sum() <= 0.01 * len(maxima)
    assert torch.equal(ours, plain_block_maxima(maxima, outer, mean))
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        plain = plain_unpacked(codes, other, (64, 320), dtype)
        assert torch.equal(plain, functional.dequantize_4bit(theirs, state))


def test_nf4_takes_the_nearest_level() -> None:
    levels, numbers = torch.tensor(LEVELS), torch.linspace(-1.2, 1.2, 4001)
    best = (numbers[:, None] - levels).abs().amin(1)
    assert torch.allclose((levels[nearest(numbers, levels).int()] - numbers).abs(), best, atol=1e-7)


def test_a_number_between_two_levels_takes_the_lower_one_as_in_a_binary_search() -> None:
    levels = torch.tensor(LEVELS)
    midpoints = (levels[1:] + levels[:-1]) / 2
    numbers = torch.cat([midpoints, levels, torch.linspace(-1.2, 1.2, 999)]).view(-1, 2)
    assert torch.equal(nearest(numbers, levels), torch.bucketize(numbers, midpoints).to(torch.uint8))
