"""Small random decoders of the families that people fine-tune, as transformers builds them from their configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

GATED = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
TIED = GATED | {"tie_word_embeddings": True}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
PLAIN = {key: value for key, value in GATED.items() if key != "num_key_value_heads"}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 100}


@dataclass(frozen=True)
class Decoder:
    """`qkv` is the layer that holds query, key and value in one, where a family has one."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    fused: bool = False
    """Whether there are kernels for it; others train by the model's own code, and say so."""
    qkv: str | None = None

    @property
    def mixture(self) -> bool:
        return any("experts" in name for name in self.settings)


QUERY_KEY_VALUE = "query_key_value"
FALCON_7B = {"multi_query": True, "parallel_attn": True, "bias": False}
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}
FALCON_RW = {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}
DECODERS: dict[str, Decoder] = {
    "llama": Decoder("llama", GATED, fused=True),
    "mistral": Decoder("mistral", GATED | {"sliding_window": 100}, fused=True),
    "qwen2": Decoder("qwen2", TIED, fused=True),
    "qwen3": Decoder("qwen3", TIED | {"head_dim": 10}, fused=True),
    "gemma2": Decoder("gemma2", TIED | {"head_dim": 10, **WINDOWS}),
    "gemma3": Decoder("gemma3_text", TIED | {"head_dim": 10, **WINDOWS}, fused=True),
    "phi3": Decoder("phi3", GATED, qkv="qkv_proj"),
    "smollm3": Decoder("smollm3", TIED | {"no_rope_layers": [1, 1, 0]}),
    "gpt2": Decoder("gpt2", GPT, fused=True, qkv="c_attn"),
    "gptj": Decoder("gptj", GPT | {"rotary_dim": 4, "tie_word_embeddings": False}),
    "pythia": Decoder("gpt_neox", PLAIN, fused=True, qkv=QUERY_KEY_VALUE),
    "stablelm": Decoder("stablelm", GATED),
    "opt": Decoder("opt", PLAIN | {"ffn_dim": 44, "word_embed_proj_dim": 32, "tie_word_embeddings": True}),
    "falcon-7b": Decoder("falcon", TIED | FALCON_7B, qkv=QUERY_KEY_VALUE),
    "falcon-40b": Decoder("falcon", TIED | FALCON_40B, qkv=QUERY_KEY_VALUE),
    "falcon-rw": Decoder("falcon", TIED | FALCON_RW, qkv=QUERY_KEY_VALUE),
    "mixtral": Decoder("mixtral", GATED | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "qwen3-moe": Decoder(
        "qwen3_moe",
        TIED | {"head_dim": 10, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 20},
    ),
    "gpt-oss": Decoder("gpt_oss", GATED | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, **WINDOWS}),
}  # fmt: skip


def decoder_model(name: str, hub: PreTrainedTokenizerFast) -> nn.Module:
    """With every bias and norm moved away from where it starts."""
    kind = DECODERS[name]
    ids = {"bos_token_id": hub.bos_token_id, "eos_token_id": hub.eos_token_id, "pad_token_id": hub.pad_token_id}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind.model_type](vocab_size=len(hub), initializer_range=0.1, **kind.settings, **ids)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def save_decoder(name: str, hub: PreTrainedTokenizerFast, folder: Path) -> Path:
    """As a user would name it: weights, tokenizer and chat template."""
    decoder_model(name, hub).save_pretrained(folder)
    hub.save_pretrained(folder)
    return folder
