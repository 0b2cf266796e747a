"""Each kernel is its plain twin: the same values, and the same gradients, which are those of differences too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from kit.plain_kernels import (
    plain_activated,
    plain_head_loss,
    plain_layer_norm,
    plain_rms_norm,
    plain_rotated,
    plain_shared_linears,
    plain_shifted_rms_norm,
)
from rankwise.kernels import attention, loss
from rankwise.kernels.attention import causal_attention, plain_causal_attention, rotated
from rankwise.kernels.linear import Identity, LinearSpec, Prologue, apply_prologue, linear_spec_of, shared_linears
from rankwise.kernels.loss import head_loss
from rankwise.kernels.norm import ActivationPrologue, LayerNorm, RmsNorm, ShiftedRmsNorm


def drawn(*shape: int, seed: int = 0, learned: bool = True) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(learned)


def assert_twins(kernel: Callable[..., Tensor], plain: Callable[..., Tensor], *given: object) -> None:
    """In value and in every gradient, from a change of the output that is like no other."""
    learned = [value for value in given if isinstance(value, Tensor) and value.requires_grad]
    ours, theirs = kernel(*given), plain(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    arriving = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9), dtype=theirs.dtype)
    found, wanted = (torch.autograd.grad(values, learned, arriving) for values in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 21), min_size=1, max_size=5), groups=st.integers(1, 3), repeats=st.integers(1, 3),
    width=st.sampled_from([2, 8]), block=st.sampled_from([1, 4, 7, 128]),
)  # fmt: skip
def test_attention_is_that_of_each_document_alone(lengths, groups, repeats, width, block):
    tokens = sum(lengths)
    q, k, v = (drawn(heads, tokens, width, seed=seed) for seed, heads in enumerate((groups * repeats, groups, groups)))
    before, attention.BLOCK = attention.BLOCK, block
    try:
        assert_twins(causal_attention, plain_causal_attention, q, k, v, lengths, 0.3)
    finally:
        attention.BLOCK = before


@pytest.mark.parametrize("wide", [3, 5])
def test_attention_by_differences(wide):
    """Values that are wider than keys take the way by matrix products, as all do on other devices."""
    q, k, v = drawn(4, 9, 3), drawn(2, 9, 3, seed=1), drawn(2, 9, wide, seed=2)
    assert torch.autograd.gradcheck(lambda q, k, v: causal_attention(q, k, v, (4, 5), 0.5), (q, k, v))


def test_attention_without_flash_is_the_same(monkeypatch):
    monkeypatch.setattr(attention, "_by_flash", attention._by_products)
    monkeypatch.setattr(attention, "BLOCK", 7)
    q, k, v = drawn(6, 30, 4), drawn(3, 30, 4, seed=1), drawn(3, 30, 4, seed=2)
    assert_twins(causal_attention, plain_causal_attention, q, k, v, (19, 2, 9), 0.3)


def test_a_sequence_gives_the_same_wherever_it_lies():
    """To the bit, although the flash kernel is given keys of the sequence that follows, or zeros after the last."""
    q, k, v = (drawn(heads, 45, 64, seed=heads, learned=False).bfloat16() for heads in (6, 2, 2))
    q, k, v = (torch.cat((one, one[:, :20]), 1) for one in (q, k, v))
    seen = causal_attention(q, k, v, (20, 25, 20), 0.125)
    assert torch.equal(seen[:20], seen[45:])


def test_a_document_does_not_see_another():
    q, k, v = (drawn(2, 12, 4, seed=seed, learned=False) for seed in range(3))
    before = causal_attention(q, k, v, (5, 7), 0.5)
    k[:, :5], v[:, :5] = 7.0, 7.0
    after = causal_attention(q, k, v, (5, 7), 0.5)
    assert torch.equal(before[5:], after[5:]) and not torch.equal(before[1:5], after[1:5])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), at_once=st.integers(1, 9))
def test_the_loss_of_a_head(rows, at_once):
    hidden, weight = drawn(rows, 5), drawn(11, 5, seed=1, learned=False)
    targets = torch.randint(11, (rows,), generator=torch.Generator().manual_seed(rows))
    before, loss.ROWS = loss.ROWS, at_once
    try:
        assert_twins(head_loss, plain_head_loss, hidden, weight, targets)
    finally:
        loss.ROWS = before
    assert torch.autograd.gradcheck(lambda hidden: head_loss(hidden, weight, targets), (hidden,))


def test_a_loss_that_nobody_learns_from_has_no_gradient():
    hidden, weight = drawn(3, 5, learned=False), drawn(11, 5, seed=1, learned=False)
    targets = torch.tensor([1, 2, 3])
    total = head_loss(hidden, weight, targets)
    assert not total.requires_grad
    torch.testing.assert_close(total, plain_head_loss(hidden, weight, targets))
    assert head_loss(hidden[:0], weight, targets[:0]).item() == 0


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6)])
def test_the_norm(shape):
    x, weight = drawn(*shape), drawn(6, seed=1, learned=False)
    assert_twins(lambda x: apply_prologue(RmsNorm(weight, 1e-3), x), lambda x: plain_rms_norm(x, weight, 1e-3), x)
    assert torch.autograd.gradcheck(lambda x: apply_prologue(RmsNorm(weight, 1e-3), x), (x,))


@pytest.mark.parametrize("norm", [LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm])
def test_the_norm_rounds_where_transformers_does(norm):
    x = drawn(50, 64, learned=False).bfloat16()
    module = norm(64).bfloat16()
    weight = module.weight.data.copy_(drawn(64, seed=1, learned=False))
    ours = apply_prologue(RmsNorm(weight, module.variance_epsilon), x).double()
    theirs = module(x).double()
    assert torch.equal(plain_rms_norm(x, weight, module.variance_epsilon).double(), theirs)
    assert (ours != theirs).double().mean() < 0.01, "the root is summed in another order, which may tip a rounding"
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=0)


@pytest.mark.parametrize("norm", [GemmaRMSNorm, Gemma3RMSNorm])
def test_gemma_s_norm_rounds_where_transformers_does(norm):
    x = drawn(50, 64, learned=False).bfloat16()
    module = norm(64).bfloat16()
    weight = module.weight.data.copy_(drawn(64, seed=1, learned=False))
    ours, theirs = apply_prologue(ShiftedRmsNorm(weight, module.eps), x), module(x)
    assert torch.equal(plain_shifted_rms_norm(x, weight, module.eps), theirs)
    assert ours.dtype == theirs.dtype and (ours != theirs).double().mean() < 0.01
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=0)


def test_the_norm_of_layers_in_bfloat16_is_torch_s_and_its_gradient_is_nearer():
    x, (weight, bias) = (
        drawn(50, 64).bfloat16().detach() + 3,
        (drawn(64, seed=seed).bfloat16().detach() for seed in (1, 2)),
    )
    arriving = drawn(50, 64, seed=3, learned=False).bfloat16()

    def found(norm, *given):
        learned = given[0].clone().requires_grad_()
        y = norm(learned, *given[1:])
        return y, torch.autograd.grad(y, learned, arriving.to(y.dtype))[0].double()

    ours = found(lambda x, *given: apply_prologue(LayerNorm(*given, 1e-5), x), x, weight, bias)
    theirs = found(lambda x, *given: nn.functional.layer_norm(x, (64,), *given, 1e-5), x, weight, bias)
    _, right = found(partial(plain_layer_norm, eps=1e-5), x.double(), weight.double(), bias.double())
    assert torch.equal(ours[0], theirs[0])
    assert (ours[1] - right).norm() < (theirs[1] - right).norm()


def test_on_a_gpu_attention_is_torch_s_own(monkeypatch):
    """Looked at on the device "meta", which has shapes and no numbers; tests/gpu computes it."""
    taken = []

    def own(q, *given):
        taken.append(q.device.type)
        return q.transpose(0, 1)

    monkeypatch.setattr(attention, "plain_causal_attention", own)
    for device in ("cpu", "meta"):
        q, k, v = (torch.zeros(2, 9, 8, device=device) for _ in range(3))
        assert causal_attention(q, k, v, (4, 5), 0.5).shape == (9, 2, 8)
    assert taken == ["meta"]


def test_rotary_positions():
    x, angles = drawn(3, 8, 6), torch.cat([drawn(8, 3, seed=1, learned=False)] * 2, 1)
    assert_twins(rotated, plain_rotated, x, angles.cos(), angles.sin())
    turned = rotated(x.transpose(0, 1).contiguous().transpose(0, 1), angles.cos(), angles.sin())
    assert torch.equal(turned, rotated(x, angles.cos(), angles.sin()))
    wide = drawn(3, 8, 10, seed=2)
    assert_twins(rotated, plain_rotated, wide, angles.cos(), angles.sin())
    fused = torch.stack((drawn(8, 3, 10), wide.transpose(0, 1)), 2).detach()
    part = rotated(fused.transpose(0, 1).unbind(2)[1], angles.cos(), angles.sin())
    assert torch.equal(part, rotated(wide, angles.cos(), angles.sin())) and torch.equal(part[..., 6:], wide[..., 6:])


def specs(kinds: str) -> list[LinearSpec]:
    """One for each letter: a (adapted), b (adapted, with a bias), f (frozen alone)."""
    found = []
    for seed, (kind, outside) in enumerate(zip(kinds, (4, 7, 3), strict=False)):
        bias = drawn(outside, seed=seed + 10, learned=False) if kind == "b" else None
        spec = LinearSpec(drawn(outside, 5, seed=seed, learned=False), bias)
        rank = seed + 1
        low = (drawn(rank, 5, seed=seed + 20), drawn(outside, rank, seed=seed + 30))
        found.append(spec if kind == "f" else replace(spec, A=low[0], B=low[1]))
    return found


@pytest.mark.parametrize("kinds", ["a", "b", "f", "aaa", "bab", "afa", "ffa", "fff"])
@pytest.mark.parametrize("learned", [True, False])
def test_linear_layers_that_share_an_input(kinds, learned):
    x, given_ = drawn(6, 5, seed=40, learned=learned), specs(kinds)
    low = [matrix for spec in given_ for matrix in (spec.A, spec.B) if matrix is not None]
    wanted = [value for value in (x, *low) if value.requires_grad]
    ours, theirs = shared_linears(Identity(), (x,), given_), plain_shared_linears(x, given_)
    arriving = [drawn(*y.shape, seed=50 + number, learned=False) for number, y in enumerate(theirs)]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if wanted:
        sums = [sum((y * g).sum() for y, g in zip(values, arriving, strict=True)) for values in (ours, theirs)]
        found, right = (torch.autograd.grad(total, wanted) for total in sums)
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


WEIGHT, BIAS = drawn(5, seed=60, learned=False), drawn(5, seed=61, learned=False)
ENTRANCES: dict[str, tuple[Prologue, Callable[..., Tensor], int]] = {
    "norm": (RmsNorm(WEIGHT, 1e-3), lambda x: plain_rms_norm(x, WEIGHT, 1e-3), 1),
    "shifted norm": (ShiftedRmsNorm(WEIGHT, 1e-3), lambda x: plain_shifted_rms_norm(x, WEIGHT, 1e-3), 1),
    "norm of layers": (LayerNorm(WEIGHT, BIAS, 1e-3), lambda x: plain_layer_norm(x, WEIGHT, BIAS, 1e-3), 1),
    **{
        f"{name} of {count}": (ActivationPrologue(name), partial(plain_activated, name), count)
        for name in ("silu", "gelu", "gelu-tanh")
        for count in (1, 2)
    },
}


def share_of(change: torch.Tensor, between: torch.Tensor) -> float:
    """How much of a change is in a difference, by least squares."""
    return float((between.double() * change.double()).sum() / change.double().square().sum())


WITHOUT_BFLOAT16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no product with a bias that rounds once (rounded_once), and trains in float32",
)


@pytest.mark.parametrize("bias", [False, pytest.param(True, marks=WITHOUT_BFLOAT16)])
def test_a_change_below_the_spacing_of_bfloat16_is_there_on_average(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * size).bfloat16()

    x, weight, A, B = normal(256, 192), normal(384, 192, size=1 / 14), normal(8, 192, size=1 / 14), normal(384, 8)
    given_bias = normal(384) if bias else None
    x, A, B = x.requires_grad_(), A.requires_grad_(), (B / 2**13).detach().requires_grad_()
    grad = normal(256, 384)
    spec = LinearSpec(weight, given_bias, A, B)
    y, bare = (shared_linears(Identity(), (x,), [one])[0] for one in (spec, LinearSpec(weight, given_bias)))
    (dx,), (bare_dx,) = (torch.autograd.grad(out, x, grad) for out in (y, bare))
    assert 0.9 < share_of(x @ A.T @ B.T, y - bare) < 1.1
    assert 0.9 < share_of(grad @ B @ A, dx - bare_dx) < 1.1


@pytest.mark.parametrize("name", ENTRANCES)
def test_what_lies_before_linear_layers(name):
    prologue, plain, count = ENTRANCES[name]
    values = [drawn(6, 5, seed=70 + number) for number in range(count)]
    before = [value.detach().clone() for value in values]
    assert_twins(lambda *values: apply_prologue(prologue, *values), plain, *values)
    given_ = specs("ab")
    low = [matrix for spec in given_ for matrix in (spec.A, spec.B)]

    def ours(*learned):
        return torch.cat(shared_linears(prologue, learned[:count], given_), 1)

    def theirs(*learned):
        return torch.cat(plain_shared_linears(plain(*learned[:count]), given_), 1)

    assert_twins(ours, theirs, *values, *low)
    assert all(torch.equal(one, other) for one, other in zip(before, values, strict=True)), "nothing is written over"
    frozen = [value.detach() for value in values]
    assert_twins(lambda *low: ours(*frozen, *low), lambda *low: theirs(*frozen, *low), *low)


def test_what_comes_before_is_kept_and_not_what_goes_in():
    gate, up = drawn(50, 5), drawn(50, 5, seed=1)
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.untyped_storage().data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        (y,) = shared_linears(ActivationPrologue("silu"), (gate, up), specs("f"))
    assert y.requires_grad and set(kept) == {value.untyped_storage().data_ptr() for value in (gate, up)}


def test_an_output_that_is_not_used_has_no_part_in_the_gradient():
    x, given_ = drawn(6, 5), specs("aaa")
    first, _, third = shared_linears(Identity(), (x,), given_)
    (first.sum() + third.square().sum()).backward()
    found = x.grad.clone()
    x.grad = None
    first, _, third = plain_shared_linears(x, given_)
    (first.sum() + third.square().sum()).backward()
    torch.testing.assert_close(found, x.grad)


def test_only_what_is_a_linear_layer_is_a_piece():
    class Other(nn.Linear):
        pass

    assert linear_spec_of(nn.Linear(2, 3)) is not None
    assert linear_spec_of(Other(2, 3)) is None and linear_spec_of(nn.Embedding(2, 3)) is None


def test_a_layer_that_is_stored_the_other_way_round_is_a_piece():
    module, x = Conv1D(7, 5).double(), drawn(6, 5)
    nn.init.normal_(module.bias)
    spec = linear_spec_of(module)
    assert spec is not None
    assert_twins(lambda x: shared_linears(Identity(), (x,), [spec])[0], module, x)


@pytest.mark.parametrize("tokens", [100, 900])
def test_attention_in_bfloat16_is_about_as_exact_as_torch_s(tokens):
    exact = [drawn(heads, tokens, 64, seed=heads).bfloat16().detach() for heads in (6, 2, 2)]
    arriving = drawn(tokens, 6, 64, seed=5, learned=False)

    def errors(kernel, dtype):
        given_ = [value.to(dtype).requires_grad_() for value in exact]
        out = kernel(*given_, (tokens,), 0.125)
        return [out, *torch.autograd.grad(out, given_, arriving.to(dtype))]

    wanted = errors(plain_causal_attention, torch.float64)
    for ours, theirs, right in zip(
        errors(causal_attention, torch.bfloat16), errors(plain_causal_attention, torch.bfloat16), wanted, strict=True
    ):
        assert (ours.double() - right).norm() < 2.5 * (theirs.double() - right).norm()
