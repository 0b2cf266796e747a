"""What autograd holds after a forward pass is what the arithmetic says, in both forms and for every family."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kit.summed_losses import summed
from rankwise.config.adapters import LoraConfig
from rankwise.forward.activation_memory import saved_bytes as measured_bytes
from rankwise.forward.fused import FusedLoss, has_kernels
from rankwise.forward.model_shape import shape_of_config
from rankwise.forward.reference import SupervisedLogits, random_documents
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.planning.activations import saved_bytes
from rankwise.planning.batches import AtOnce
from rankwise.planning.tasks import FAST
from rankwise.rows.encoded.batches import collate
from rankwise.rows.encoded.packing import flat

VOCABULARY, LENGTH = 64, 96
ONE = AtOnce(1, 1, 0)
GATED = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "llama": GATED, "mistral": GATED, "qwen3": GATED, "gemma": GATED,
    "gemma3_text": GATED | {"sliding_window": 256, "query_pre_attn_scalar": 16},
    "qwen2": {key: value for key, value in GATED.items() if key != "head_dim"},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": {
        "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 256,
    },
}  # fmt: skip
BARE = {key: value for key, value in GATED.items() if key != "head_dim"}
PLAIN = {
    "smollm3": BARE | {"pad_token_id": 0}, "phi3": BARE | {"pad_token_id": 0},
    "gemma2": GATED | {"sliding_window": 256, "query_pre_attn_scalar": 16},
    "stablelm": BARE | {"num_attention_heads": 2, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "gptj": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "opt": {
        "vocab_size": VOCABULARY, "hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 256, "word_embed_proj_dim": 48,
    },
}  # fmt: skip
"""Families without a fast form."""
BLOCKS = 3
NEAR = {"fast": 0.02, "plain": 0.03}
"""Shares of what autograd holds. In the plain form, only the capped scores of Gemma 2 are off by more."""


def config_of(family: str, blocks: int):
    name = "n_layer" if family in ("gpt2", "gptj") else "num_hidden_layers"
    return AutoConfig.for_model(family, **(CONFIGS | PLAIN)[family] | {name: blocks})


@cache
def shape_of(family: str):
    return shape_of_config(config_of(family, BLOCKS).to_dict(), family, "config.json")


def built(family: str, dtype: torch.dtype, method: str, blocks: int = BLOCKS):
    model = AutoModelForCausalLM.from_config(config_of(family, blocks), dtype=dtype).eval()
    tuned = FullFineTuning(model, dict) if method == "full" else inject(model, LoraConfig(rank=4))
    ranks = {} if method == "full" else dict.fromkeys(range(blocks), 4.0 * len(tuned.adapters()) / blocks)
    return model, ranks


def autograd_bytes(model, form: str, count: int) -> int:
    documents = random_documents(VOCABULARY, [LENGTH] * count, torch.Generator().manual_seed(0))
    if form == "fast":
        return measured_bytes(FusedLoss(model), flat(documents, 10**9)[0], model)
    return measured_bytes(summed(SupervisedLogits(model)), collate(documents), model)


def of_a_block(family: str, dtype: torch.dtype, method: str, form: str) -> tuple[float, float]:
    """Bytes that a token keeps in one more block as autograd has it, and in a block as planned."""
    found = []
    for blocks in (BLOCKS - 1, BLOCKS):
        model, ranks = built(family, dtype, method, blocks)
        found.append((autograd_bytes(model, form, 3) - autograd_bytes(model, form, 1)) / (2 * LENGTH))
    number, learns = torch.finfo(dtype).bits // 8, "full" if method == "full" else "adapter"
    planned = saved_bytes(shape_of(family), AtOnce(LENGTH, LENGTH, LENGTH), ranks, number, form, learns)
    return found[1] - found[0], planned / LENGTH / BLOCKS


BY_FORM = [
    *((family, "fast", torch.float32) for family in CONFIGS),
    *((family, "fast", torch.bfloat16) for family in ("llama", "gemma3_text", "gpt2")),
    *((family, "plain", torch.float32) for family in ("qwen3", "gemma", "gpt_neox")),
]
"""Each family in the form that it is trained in, and families of each kind in the others."""
BY_ITSELF = [*((family, torch.float32) for family in PLAIN), ("phi3", torch.bfloat16), ("gptj", torch.bfloat16)]


@pytest.mark.parametrize(("family", "form", "dtype"), BY_FORM, ids=str)
def test_a_token_keeps_what_the_arithmetic_says(family, form, dtype):
    found, planned = of_a_block(family, dtype, "lora", form)
    assert planned == pytest.approx(found, rel=NEAR[form])


@pytest.mark.parametrize(("family", "dtype"), BY_ITSELF, ids=str)
def test_so_does_one_of_a_family_without_a_fast_form(family, dtype):
    found, planned = of_a_block(family, dtype, "lora", "plain")
    assert planned == pytest.approx(found, rel=NEAR["plain"])


@pytest.mark.parametrize("family", CONFIGS | PLAIN)
def test_where_weights_learn_a_token_keeps_more(family):
    found, planned = of_a_block(family, torch.float32, "full", "plain")
    assert planned == pytest.approx(found, rel=NEAR["plain"])


def test_llama_is_exact():
    """By hand, of SmolLM2-135M: width 576, 9 heads and 3 of keys of 64, 1,536, rank 16 on seven layers."""
    shape = shape_of_config(
        {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
         "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
         "max_position_embeddings": 8192, "tie_word_embeddings": True}, "starter", "starter")  # fmt: skip
    ranks = dict.fromkeys(range(30), 112.0)
    assert saved_bytes(shape, ONE, ranks, 2, "fast", "adapter") == 30 * 11752
    assert saved_bytes(shape, ONE, ranks, 4, "fast", "adapter") == 30 * 23496
    assert saved_bytes(shape, ONE, ranks, 2, "plain", "adapter") == 30 * 22540
    assert saved_bytes(shape, ONE, ranks, 4, "plain", "adapter") == 30 * 40428
    assert saved_bytes(shape, ONE, {}, 4, "plain", "full") == 30 * 44588


def test_blocks_computed_twice_keep_their_input_and_one_at_a_time_everything():
    shape = shape_of_config({"model_type": "llama", **{k: v for k, v in GATED.items() if k != "head_dim"}}, "a", "a")
    each = saved_bytes(shape, ONE, {}, 2, "fast", "adapter") / 3
    assert saved_bytes(shape, ONE, {}, 2, "fast", "adapter", recomputed=2) == pytest.approx(2 * 2 * 48 + each)
    assert saved_bytes(shape, AtOnce(10, 10, 10), {}, 2, "fast", "adapter", lowest=1) == pytest.approx(20 * each)


def test_the_families_with_a_fast_form_are_those_that_have_one():
    assert set(CONFIGS) == FAST
    for family in CONFIGS:
        model, *_ = built(family, torch.float32, "lora", 2)
        assert has_kernels(model, LENGTH), family
    others = AutoConfig.for_model("gptj", vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=8)
    assert not has_kernels(AutoModelForCausalLM.from_config(others), LENGTH)
