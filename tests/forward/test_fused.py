"""The fast form of a model is the plain one: the same loss and the same gradients, whatever the adapter is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from conftest import tiny_model
from kit.fast_forms import assert_every_fault_is_found, assert_the_plain_one, in_float64, rows, unsettle
from kit.summed_losses import summed
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import ModelError
from rankwise.forward.agreement import agrees
from rankwise.forward.fused import FusedLoss, has_kernels
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject
from rankwise.rows.encoded.batches import input_length
from rankwise.rows.encoded.packing import flat, pack
from rankwise.rows.text.tokenize import Tokens

SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip


STRETCHED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "llama":
        return tiny_model("llama").double().requires_grad_(False)
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
    return model.requires_grad_(False)


SPECS = {
    "lora": LoraConfig(rank=3, alpha=5),
    "some layers": LoraConfig(rank=3, alpha=5, targets=("q_proj", "down_proj"), layers=(1,)),
    "dropout": LoraConfig(rank=3, dropout=0.4),
    "dora": LoraConfig(rank=3, dora=True),
    "adalora": AdaLoraConfig(budget=3),
    "embedding": LoraConfig(rank=3, targets=("embed_tokens", "v_proj")),
}


CASES = [(kind, name) for number, kind in enumerate(("llama", "mistral", "qwen2", "qwen3", "tied", "far"))
         for at, name in enumerate(SPECS) if kind == "llama" or at % 2 == number % 2]  # fmt: skip
"""All adapters in one family, and every second one in each other kind."""


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_losses_and_gradients_are_the_plain_ones(kind, name):
    model = model_of(kind)
    adapters = inject(model, SPECS[name])
    unsettle(adapters)
    assert has_kernels(model, 40)
    assert_the_plain_one(model, adapters.parameters())


def test_with_dropout_the_layers_drop():
    model = model_of("llama")
    adapters = inject(model, SPECS["dropout"])
    unsettle(adapters)
    adapters.train()
    (batch,) = flat(rows(3), 500)
    torch.manual_seed(0)
    first, second = (FusedLoss(model)(batch).item() for _ in range(2))
    assert first != second


def test_flat_batches_say_all_that_packed_ones_do():
    sequences = rows(9)
    batches = flat(sequences, 70)
    assert sorted(length for batch in batches for length in batch.lengths) == sorted(map(input_length, sequences))
    assert all(batch.tokens == batch.input_ids.numel() == sum(batch.lengths) for batch in batches)
    assert all(batch.tokens <= 70 or len(batch.lengths) == 1 for batch in batches)
    model = model_of("llama")
    in_float64(model)
    plain = summed(SupervisedLogits(model))
    with torch.no_grad():
        flatly, packed = (sum(plain(batch).item() for batch in made) for made in (batches, pack(sequences, 70)))
    assert flatly == pytest.approx(packed, rel=1e-10), "a plain form reads them by their positions"
    assert flat([Tokens((1,), (True,))], 70) == []


def test_only_what_is_known_is_fast():
    assert not has_kernels(tiny_model("gptj"), 10) and not has_kernels(tiny_model("bert"), 10)
    assert not has_kernels(nn.Linear(2, 2), 10)
    assert has_kernels(model_of("far"), 64) and not has_kernels(model_of("far"), 65), (
        "what lies outside of the window is unseen"
    )
    model = model_of("llama")
    adapters = inject(model, LoraConfig(targets=("lm_head", "q_proj")))
    assert not has_kernels(model, 10), "the head learns"
    adapters.remove()
    type(model.model.layers[1]).__name__ = "Other"
    try:
        assert not has_kernels(model, 10)
    finally:
        type(model.model.layers[1]).__name__ = "LlamaDecoderLayer"


@pytest.mark.parametrize(
    ("dtype", "kind", "spec"),
    [
        (torch.float32, "llama", LoraConfig(rank=3, alpha=30)),
        (torch.bfloat16, "llama", AdaLoraConfig(budget=3, scale=20)),
        (torch.float32, "mistral", AdaLoraConfig(budget=3, scale=20)),
        (torch.bfloat16, "qwen3", LoraConfig(rank=3, alpha=30)),
    ],
)
def test_agreement_is_found_and_a_difference_too(dtype, kind, spec, monkeypatch):
    model = model_of(kind).to(dtype)
    adapters = inject(model, spec)
    assert_every_fault_is_found(model, adapters.parameters(), monkeypatch)
    del model.model.layers[0].self_attn.scaling
    assert not agrees(model, adapters.parameters(), SupervisedLogits(model_of(kind).to(dtype)))


def test_a_model_that_learns_itself_is_plain():
    model = model_of("llama")
    for part in (model.model.layers[1].self_attn.q_proj, model.model.layers[0].input_layernorm, model.lm_head):
        part.requires_grad_(True)
        assert not has_kernels(model, 10), "kernels take it as frozen"
        part.requires_grad_(False)
    assert has_kernels(model, 10)


def test_a_model_with_a_narrow_window_is_asked_with_documents_that_fit():
    model = model_of("far").float()
    model.config.sliding_window = 20
    adapters = inject(model, LoraConfig(rank=3))
    assert has_kernels(model, 20) and not has_kernels(model, 21)
    assert agrees(model, adapters.parameters(), SupervisedLogits(model))


def test_weights_that_are_not_finite_are_named():
    model = model_of("llama").float()
    adapters = inject(model, LoraConfig(rank=3))
    model.model.layers[1].mlp.up_proj.base_layer.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        agrees(model, adapters.parameters(), SupervisedLogits(model))


def test_what_the_kernels_would_pass_over_is_plain():
    model = model_of("llama")
    handle = model.model.layers[0].register_forward_hook(lambda *given: None)
    assert not has_kernels(model, 10)
    handle.remove()
    assert has_kernels(model, 10)
    model.model.layers[0].mlp.forward = lambda x: x
    assert not has_kernels(model, 10)
    dropping = model_of("qwen2")
    dropping.config.attention_dropout = 0.5
    assert has_kernels(dropping, 10) and not has_kernels(dropping.train(), 10)
    far = model_of("far")
    far.model.rotary_emb.rope_type = "longrope"
    assert not has_kernels(far, 10)


def test_a_block_that_borrows_a_name_is_not_known(monkeypatch):
    model = model_of("llama")
    monkeypatch.setattr(type(model.model.layers[0]), "__module__", "transformers_modules.somebody")
    assert not has_kernels(model, 10)
