"""The fast form of GPT-NeoX, GPT-2, Gemma and Gemma 3 is the plain one, and what it cannot do it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
)

from kit.fast_forms import assert_every_fault_is_found, assert_the_plain_one, unsettle
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.forward.agreement import agrees
from rankwise.forward.fused import has_kernels
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject

NEOX = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
GEMMA = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
TURNS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
}
CONFIGS = {
    "neox": lambda **more: GPTNeoXConfig(**{**NEOX, "rotary_pct": 0.25, **more}),
    "neox, one by one": lambda: GPTNeoXConfig(**NEOX, rotary_pct=1.0, use_parallel_residual=False),
    "neox, tied": lambda: GPTNeoXConfig(
        **NEOX, rotary_pct=0.5, hidden_act="gelu_new", attention_bias=False, tie_word_embeddings=True
    ),
    "gpt2": lambda **more: GPT2Config(**{**GPT2, **more}),
    "gpt2, scaled": lambda: GPT2Config(
        **GPT2, n_inner=40, scale_attn_by_inverse_layer_idx=True, activation_function="relu", tie_word_embeddings=False
    ),
    "gpt2, not scaled": lambda: GPT2Config(**GPT2, scale_attn_weights=False),
    "gemma": lambda **more: GemmaConfig(**{**GEMMA, **more}),
    "gemma 2": lambda: Gemma2Config(**GEMMA),
    "gemma 3": lambda **more: Gemma3TextConfig(
        **{**GEMMA, "sliding_window": 160, "layer_types": KINDS, "rope_parameters": TURNS, "query_pre_attn_scalar": 7}
        | more
    ),
}
FAST = [kind for kind in CONFIGS if kind != "gemma 2"]
ATTENTION = {"neox": "query_key_value", "gpt2": "c_attn", "gemma": "v_proj"}
DOWN = {"neox": "dense_4h_to_h", "gpt2": "mlp.c_proj", "gemma": "down_proj"}
EMBEDDINGS = {"neox": ("embed_in",), "gpt2": ("wte", "wpe")}
"""Gemma's scales what it gives, and takes no adapter."""


def model_of(kind: str, **more: object) -> nn.Module:
    """With norms and biases that are not what they start as, and attention that tells tokens apart: in bfloat16 a
    fault in what a model hardly uses is below the rounding."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**more)).eval().double()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name or "ln_" in name:
            nn.init.normal_(parameter, 1.0 if "weight" in name and "gemma" not in kind else 0.0, 0.3)
        elif any(layer in name for layer in ("query_key_value", "c_attn")):
            nn.init.normal_(parameter, 0.0, 0.3)
    return model.requires_grad_(False)


def family(kind: str) -> str:
    return kind.replace(",", "").split()[0]


SPECS = {
    "lora": lambda kind: LoraConfig(rank=3, alpha=5),
    "some layers": lambda kind: LoraConfig(rank=3, alpha=5, targets=(ATTENTION[kind], DOWN[kind]), layers=(1,)),
    "dropout": lambda kind: LoraConfig(rank=3, dropout=0.4),
    "dora": lambda kind: LoraConfig(rank=3, dora=True),
    "adalora": lambda kind: AdaLoraConfig(budget=3),
    "embedding": lambda kind: LoraConfig(rank=3, targets=(*EMBEDDINGS[kind], ATTENTION[kind])),
}


CASES = [(kind, name) for number, kind in enumerate(FAST) for at, name in enumerate(SPECS)
         if (name != "embedding" or family(kind) in EMBEDDINGS)
         and (kind in EMBEDDINGS or at % 2 == number % 2)]  # fmt: skip
"""All adapters in two families, and every second one in each other kind."""


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_losses_and_gradients_are_the_plain_ones(kind, name):
    model = model_of(kind)
    adapters = inject(model, SPECS[name](family(kind)))
    unsettle(adapters)
    assert has_kernels(model, 40)
    assert_the_plain_one(model, adapters.parameters())


PRECISE, COARSE = torch.float32, torch.bfloat16
ADAPTED = (LoraConfig(rank=3, alpha=30), AdaLoraConfig(budget=3, scale=20))


@pytest.mark.parametrize(
    ("kind", "spec", "dtype"),
    [
        (kind, ADAPTED[number % 2], (PRECISE, COARSE)[number // 2 % 2])  # every adapter and number format meet
        for number, kind in enumerate(FAST)
    ],
)
def test_agreement_is_found_and_a_difference_too(kind, spec, dtype, monkeypatch):
    model = model_of(kind).to(dtype)
    adapters = inject(model, spec)
    assert_every_fault_is_found(model, adapters.parameters(), monkeypatch)


def dropping(kind: str) -> dict[str, dict[str, float]]:
    """Each dropout of a family alone."""
    none = {
        "neox": {"attention_dropout": 0.0, "hidden_dropout": 0.0},
        "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        "gemma": {"attention_dropout": 0.0},
        "gemma 3": {"attention_dropout": 0.0},
    }[kind]
    return {"none": none, **{name: {**none, name: 0.5} for name in none}}


@pytest.mark.parametrize("kind", ["neox", "gpt2", "gemma", "gemma 3"])
def test_what_drops_is_plain_while_it_drops(kind):
    for name, rates in dropping(kind).items():
        model = model_of(kind, **rates)
        assert has_kernels(model, 10), name
        assert has_kernels(model.train(), 10) == (name == "none"), name
        assert has_kernels(model.eval(), 10), name


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gpt2", {"add_cross_attention": True}),
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma 3", {"use_bidirectional_attention": True}),
        ("gemma 3", {"final_logit_softcapping": 30.0}),
        ("gemma 3", {"attn_logit_softcapping": 50.0}),
        ("neox", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}),
    ],
)
def test_what_is_not_computed_here_is_refused(kind, more):
    assert has_kernels(model_of(kind), 10) and not has_kernels(model_of(kind, **more), 10)


def test_gemma_2_has_soft_caps():
    assert not has_kernels(model_of("gemma 2"), 10)


def test_one_kind_of_angles_that_depends_on_the_longest_is_enough():
    model = model_of("gemma 3")
    model.model.rotary_emb.rope_type["full_attention"] = "longrope"
    assert not has_kernels(model, 10)


def test_outside_of_a_window_nothing_is_seen():
    model = model_of("gemma 3")
    assert has_kernels(model, 160) and not has_kernels(model, 161)


def test_a_head_with_a_bias_is_plain():
    model = model_of("neox")
    model.lm_head.bias = nn.Parameter(torch.ones(96))
    assert not has_kernels(model, 10)


def test_a_model_with_few_positions_is_asked_with_documents_that_fit():
    model = model_of("gpt2", n_positions=64)
    adapters = inject(model, LoraConfig(rank=3))
    assert agrees(model, adapters.parameters(), SupervisedLogits(model))
