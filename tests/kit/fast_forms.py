"""The law of the fast form, that it is the plain one, and faults to be found, for tests of every family."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from kit.plain_kernels import plain_rms_norm, plain_shifted_rms_norm
from kit.summed_losses import summed
from rankwise.adapters.set import AdapterSet
from rankwise.forward import decoders
from rankwise.forward.agreement import agrees
from rankwise.forward.fused import FusedLoss
from rankwise.forward.reference import SupervisedLogits
from rankwise.kernels import attention as attention_kernel
from rankwise.kernels import linear
from rankwise.rows.encoded.batches import portion
from rankwise.rows.encoded.packing import flat
from rankwise.rows.text.tokenize import Tokens


def rows(count: int = 7) -> list[Tokens]:
    generator = torch.Generator().manual_seed(count)
    found = []
    for length in torch.randint(2, 40, (count,), generator=generator).tolist():
        ids = torch.randint(0, 96, (length,), generator=generator).tolist()
        found.append(Tokens(tuple(ids), tuple(place >= length // 2 for place in range(length))))
    return found


def unsettle(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


PLAIN_NORMS = {
    **dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), plain_rms_norm),
    **dict.fromkeys(("GemmaRMSNorm", "Gemma3RMSNorm"), plain_shifted_rms_norm),
}


def in_float64(model: nn.Module) -> None:
    """Also inside its norms, which transformers computes in float32 whatever comes in."""
    for module in model.double().modules():
        plain = PLAIN_NORMS.get(type(module).__name__)
        if plain is not None:
            eps = getattr(module, "variance_epsilon", None) or module.eps
            module.forward = partial(plain, weight=module.weight, eps=eps)


def learned_from(loss_of, batches, parameters) -> tuple[float, list[torch.Tensor]]:
    total = sum(loss_of(batch) for batch in batches)
    return total.item(), list(torch.autograd.grad(total, parameters))


def assert_the_plain_one(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    """Losses and gradients, in float64. The model's norms are changed."""
    sequences = rows()
    in_float64(model)
    ours = learned_from(FusedLoss(model), flat(sequences, 60), parameters)
    theirs = learned_from(summed(SupervisedLogits(model)), portion(sequences, 200), parameters)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    largest = max(gradient.abs().max() for gradient in theirs[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert (one - other).abs().max() < 1e-10 * largest
    assert largest > 1e-2


def faults_of() -> dict[str, tuple[str, object]]:
    """What could be wrong with the fast form, as what would stand in place of one of its kernels."""
    attention, linears, enter = attention_kernel.causal_attention, linear.shared_linears, linear.apply_prologue

    def apart(places):
        return lambda q, k, v, lengths, scale: attention(q, k, v, places(lengths), scale)

    def changed(change):
        return lambda enter, values, specs: linears(
            enter, values, [one if one.A is None else change(one) for one in specs]
        )

    return {
        "sequences see each other": ("causal_attention", apart(lambda lengths: (sum(lengths),))),
        "tokens see themselves": ("causal_attention", apart(lambda lengths: (1,) * sum(lengths))),
        "a block sees itself": ("causal_attention", apart(lambda lengths: (100, lengths[0] - 100, *lengths[1:]))),
        "nothing is seen": ("causal_attention", lambda *given: 0 * attention(*given)),
        "no adapters": ("shared_linears", changed(lambda one: replace(one, A=None, B=None))),
        "half of the adapters": ("shared_linears", changed(lambda one: replace(one, A=one.A / 2))),
        "no gradient": ("apply_prologue", lambda prologue, *values: enter(prologue, *(one.detach() for one in values))),
    }


def plant(patch: pytest.MonkeyPatch, kernel: str, fault: object) -> None:
    """In the file that the fast form is made of."""
    patch.setattr(decoders, kernel, fault)


def assert_every_fault_is_found(model: nn.Module, parameters: list[nn.Parameter], patch: pytest.MonkeyPatch) -> None:
    plain = SupervisedLogits(model)
    before = [parameter.clone() for parameter in parameters]
    assert agrees(model, parameters, plain)
    assert all(torch.equal(*pair) for pair in zip(before, parameters, strict=True)), "left as it was"
    for name, fault in faults_of().items():
        with patch.context() as context:
            plant(context, *fault)
            assert not agrees(model, parameters, plain), name
