"""Small and odd models of families of each kind: every width another one, so that no two can be mixed up.

A shape is read from the model that transformers builds, so no family has a formula of its own (test_architectures.py).
"""

from __future__ import annotations

import tracemalloc
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rankwise.errors import ModelError
from rankwise.forward.model_shape import shape_of_config
from rankwise.forward.plan import base_of
from rankwise.planning.shape import ModelShape

MADE_BY = defaultdict(lambda: AutoModelForCausalLM, {
    "bert": AutoModel, "roberta": AutoModel, "xlm-roberta": AutoModel, "deberta-v2": AutoModel, "vit": AutoModel,
    "dinov2": AutoModel, "t5": AutoModelForSeq2SeqLM, "bart": AutoModelForSeq2SeqLM,
})  # fmt: skip
IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def _gated(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {"vocab_size": 97, "num_key_value_heads": 2, "max_position_embeddings": 64} | sizes | IDS | more


def _gpt(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 97, "n_positions": 36, "n_embd": 24, "n_layer": 3, "n_head": 4} | IDS | more


def _plain(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {"vocab_size": 97, "max_position_embeddings": 36} | sizes | IDS | more


def _opt(**more: Any) -> dict[str, Any]:
    kept = {key: value for key, value in _plain().items() if key != "intermediate_size"}
    return kept | {"ffn_dim": 44, "word_embed_proj_dim": 24} | more


def _t5(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 97, "d_model": 24, "d_kv": 5, "d_ff": 44, "num_layers": 3, "num_heads": 4} | more


BART = {
    "vocab_size": 97, "d_model": 24, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 36, "encoder_attention_heads": 4, "decoder_attention_heads": 6, "max_position_embeddings": 36,
} | IDS  # fmt: skip
IMAGES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 30, "patch_size": 7}
DEBERTA_V3 = {
    "relative_attention": True, "position_buckets": 9, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "type_vocab_size": 0, "position_biased_input": False,
}  # fmt: skip
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _gated()),
    "llama, tied": ("llama", _gated(tie_word_embeddings=True, num_key_value_heads=None)),
    "qwen2": ("qwen2", _gated(tie_word_embeddings=True)),
    "qwen3": ("qwen3", _gated(head_dim=10)),
    "qwen3, wide": ("qwen3", _gated()),
    "gemma": ("gemma", _gated(head_dim=10, num_key_value_heads=1)),
    "gemma2": ("gemma2", _gated(head_dim=10)),
    "gemma3_text": ("gemma3_text", _gated(head_dim=10, tie_word_embeddings=False)),
    "stablelm": ("stablelm", _gated()),
    "phi3": ("phi3", _gated()),
    "gpt_neox": ("gpt_neox", _plain()),
    "gptj": ("gptj", _gpt(rotary_dim=4)),
    "gpt2": ("gpt2", _gpt()),
    "opt": ("opt", _opt()),
    "opt, narrow": ("opt", _opt(word_embed_proj_dim=12, do_layer_norm_before=False, enable_bias=False)),
    "bert": ("bert", _plain()),
    "roberta": ("roberta", _plain(type_vocab_size=1)),
    "deberta-v3": ("deberta-v2", _plain(**DEBERTA_V3)),
    "t5": ("t5", _t5()),
    "t5, gated": ("t5", _t5(feed_forward_proj="gated-gelu", num_decoder_layers=2, relative_attention_num_buckets=6)),
    "bart": ("bart", BART),
    "vit": ("vit", IMAGES | {"intermediate_size": 44, "pooler_output_size": 10}),
    "dinov2": ("dinov2", IMAGES | {"mlp_ratio": 3}),
}  # fmt: skip


def written_config(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """As transformers writes it to config.json."""
    return CONFIG_MAPPING[family](**settings).to_dict()


def on_meta(config: dict[str, Any]) -> nn.Module:
    """As transformers builds it, without memory."""
    kind = CONFIG_MAPPING[config["model_type"]]
    with torch.device("meta"):
        return MADE_BY[config["model_type"]].from_config(kind.from_dict(config))


@cache
def shape_of_small(name: str) -> ModelShape:
    family, settings = SMALL[name]
    return shape_of_config({"model_type": family} | settings, name, "config.json")


def refusal(name: str) -> str:
    """What is said of a model that cannot be planned, for which no memory may be taken."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            shape_of(name)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    return str(caught.value)


def shape_of(name: str) -> ModelShape:
    """The shape of the model that `rankwise plan --model` means by `name`."""
    return base_of(name).shape()
