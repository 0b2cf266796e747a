"""The fast form of a model is the plain one: the same loss and the same gradients, whatever the adapter is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from conftest import tiny_model
from rankwise.adapters.adapter_set import AdapterSet, inject
from rankwise.data.batches import asked, portion
from rankwise.data.flat import flat
from rankwise.data.packing import pack
from rankwise.data.tokens import Tokens
from rankwise.kernels.norm import plain_rms_norm
from rankwise.models.causal import SupervisedLogits
from rankwise.models.fast import FastLoss, agrees, is_fast
from rankwise.spec.adapters import AdaLoraSpec, LoraSpec
from rankwise.training.losses import summed

SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip


STRETCHED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "llama":
        return tiny_model("llama").double()
    config = {
        "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
        "qwen2": lambda: Qwen2Config(**SHAPE),
        "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=12),
        "tied": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
        "far": lambda: MistralConfig(
            **SHAPE, sliding_window=64, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
        ),
    }[kind]()
    model = AutoModelForCausalLM.from_config(config).eval().double()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


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


def in_float64(model: nn.Module) -> None:
    """Also inside its norms, which transformers computes in float32 whatever comes in."""
    for module in model.double().modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(plain_rms_norm, weight=module.weight, eps=module.variance_epsilon)


def learned_from(loss_of, batches, parameters) -> tuple[float, list[torch.Tensor]]:
    total = sum(loss_of(batch) for batch in batches)
    return total.item(), list(torch.autograd.grad(total, parameters))


SPECS = {
    "lora": LoraSpec(rank=3, alpha=5),
    "some layers": LoraSpec(rank=3, alpha=5, targets=("q_proj", "down_proj"), layers=(1,)),
    "dropout": LoraSpec(rank=3, dropout=0.4),
    "dora": LoraSpec(rank=3, dora=True),
    "adalora": AdaLoraSpec(budget=3),
    "embedding": LoraSpec(rank=3, targets=("embed_tokens", "v_proj")),
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "tied", "far"])
@pytest.mark.parametrize("name", SPECS)
def test_losses_and_gradients_are_the_plain_ones(kind, name):
    model, documents = model_of(kind), rows()
    adapters = inject(model, SPECS[name])
    unsettle(adapters)
    assert is_fast(model, 40)
    in_float64(model)
    parameters = adapters.parameters()
    ours = learned_from(FastLoss(model), flat(documents, 60), parameters)
    theirs = learned_from(summed(SupervisedLogits(model)), portion(documents, 200), parameters)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    largest = max(gradient.abs().max() for gradient in theirs[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert (one - other).abs().max() < 1e-10 * largest
    assert largest > 1e-2


def test_with_dropout_the_layers_drop():
    model = model_of("llama")
    adapters = inject(model, SPECS["dropout"])
    unsettle(adapters)
    adapters.train()
    (batch,) = flat(rows(3), 500)
    torch.manual_seed(0)
    first, second = (FastLoss(model)(batch).item() for _ in range(2))
    assert first != second


def test_flat_batches_say_all_that_packed_ones_do():
    documents = rows(9)
    batches = flat(documents, 70)
    assert sorted(length for batch in batches for length in batch.lengths) == sorted(map(asked, documents))
    assert all(batch.tokens == batch.inputs.numel() == sum(batch.lengths) for batch in batches)
    assert all(batch.tokens <= 70 or len(batch.lengths) == 1 for batch in batches)
    model = model_of("llama")
    in_float64(model)
    plain = summed(SupervisedLogits(model))
    with torch.no_grad():
        flatly, packed = (sum(plain(batch).item() for batch in made) for made in (batches, pack(documents, 70)))
    assert flatly == pytest.approx(packed, rel=1e-10), "a plain form reads them by their positions"
    assert flat([Tokens((1,), (True,))], 70) == []


def test_only_what_is_known_is_fast():
    assert not is_fast(tiny_model("gpt2"), 10) and not is_fast(tiny_model("neox"), 10)
    assert is_fast(model_of("far"), 64) and not is_fast(model_of("far"), 65), (
        "what lies outside of the window is unseen"
    )
    model = model_of("llama")
    adapters = inject(model, LoraSpec(targets=("lm_head", "q_proj")))
    assert not is_fast(model, 10), "the head learns"
    adapters.eject()
    type(model.model.layers[1]).__name__ = "Other"
    try:
        assert not is_fast(model, 10)
    finally:
        type(model.model.layers[1]).__name__ = "LlamaDecoderLayer"


def faults_of(fast) -> dict[str, tuple[str, object]]:
    """What could be wrong with the fast form, as what would stand in place of one of its kernels."""
    attention, linears, enter = fast.causal_attention, fast.shared_linears, fast.entered

    def apart(places):
        return lambda q, k, v, lengths, scale: attention(q, k, v, places(lengths), scale)

    def changed(change):
        return lambda enter, values, pieces: linears(
            enter, values, [one if one.A is None else change(one) for one in pieces]
        )

    return {
        "documents see each other": ("causal_attention", apart(lambda lengths: (sum(lengths),))),
        "tokens see themselves": ("causal_attention", apart(lambda lengths: (1,) * sum(lengths))),
        "a block sees itself": ("causal_attention", apart(lambda lengths: (100, lengths[0] - 100, *lengths[1:]))),
        "nothing is seen": ("causal_attention", lambda *given: 0 * attention(*given)),
        "no adapters": ("shared_linears", changed(lambda one: replace(one, A=None, B=None))),
        "half of the adapters": ("shared_linears", changed(lambda one: replace(one, A=one.A / 2))),
        "no gradient": ("entered", lambda entrance, *values: enter(entrance, *(one.detach() for one in values))),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("spec", [LoraSpec(rank=3, alpha=30), AdaLoraSpec(budget=3, scale=20)])
def test_agreement_is_found_and_a_difference_too(dtype, kind, spec, monkeypatch):
    from rankwise.models import fast

    model = model_of(kind).to(dtype)
    adapters, plain = inject(model, spec), SupervisedLogits(model)
    before = [parameter.clone() for parameter in adapters.parameters()]
    assert agrees(model, adapters.parameters(), plain)
    assert all(torch.equal(*pair) for pair in zip(before, adapters.parameters(), strict=True)), "left as it was"
    for name, (kernel, fault) in faults_of(fast).items():
        with monkeypatch.context() as context:
            context.setattr(fast, kernel, fault)
            assert not agrees(model, adapters.parameters(), plain), name
    del model.model.layers[0].self_attn.scaling
    assert not agrees(model, adapters.parameters(), SupervisedLogits(model_of(kind).to(dtype)))


def test_what_the_kernels_would_pass_over_is_plain():
    model = model_of("llama")
    handle = model.model.layers[0].register_forward_hook(lambda *given: None)
    assert not is_fast(model, 10)
    handle.remove()
    assert is_fast(model, 10)
    model.model.layers[0].mlp.forward = lambda x: x
    assert not is_fast(model, 10)
    dropping = model_of("qwen2")
    dropping.config.attention_dropout = 0.5
    assert is_fast(dropping, 10) and not is_fast(dropping.train(), 10)
    far = model_of("far")
    far.model.rotary_emb.rope_type = "longrope"
    assert not is_fast(far, 10)


def test_a_block_that_borrows_a_name_is_not_known(monkeypatch):
    model = model_of("llama")
    monkeypatch.setattr(type(model.model.layers[0]), "__module__", "transformers_modules.somebody")
    assert not is_fast(model, 10)
