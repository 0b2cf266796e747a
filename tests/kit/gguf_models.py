"""Tiny random models of every architecture that is written as GGUF, with a tokenizer and an adapter beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from kit.families import BY_NAME, hub_of
from rankwise.adapters.formats.peft import write_peft
from rankwise.cli.main import app
from rankwise.config.adapters import LoraConfig
from rankwise.methods.inject import inject

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
LLAMA3 = {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
SETTINGS = {
    "llama": SIZES | {"rope_parameters": ROPE},
    "llama3": SIZES | {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 32},
    "mistral": SIZES | {"sliding_window": None},
    "smollm3": SIZES | {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1], "use_sliding_window": False,
                        "pad_token_id": None},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 16},
    "gemma2": SIZES | {"num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "gemma3_text": SIZES | {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "phi3": SIZES | {"pad_token_id": None, "sliding_window": None, "original_max_position_embeddings": 256},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
}  # fmt: skip
KINDS = tuple(SETTINGS)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = {"phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), "gpt2": ("c_attn", "c_proj", "c_fc")}


def layers_of(kind: str) -> tuple[str, ...]:
    """The last names of all linear layers below the head."""
    return LAYERS.get(kind, LINEAR)


def model_in(folder: Path, kind: str, family: str = "chatml", pieces: str = "gpt2", **more: object) -> Path:
    """A model with norms and biases that differ from ones and zeros, in float32."""
    torch.manual_seed(0)
    tokenizer = hub_of(BY_NAME[family], pieces)
    model_type = "llama" if kind == "llama3" else kind
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = SETTINGS[kind] | ends | more
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer) + 3, **settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
            elif "embed" not in name:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_in(folder: Path, base: Path, targets: Sequence[str], size: float = 0.2, **settings: object) -> Path:
    """A random adapter over a base, whose ranks and scales differ between layers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    patterns = {"rank_pattern": {targets[0]: 5}, "alpha_pattern": {targets[-1]: 3.0}}
    adapters = inject(model, LoraConfig(targets=tuple(targets), **({"rank": 4, "alpha": 6.0} | patterns | settings)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapters.named_parameters().items():
            drawn = size * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + drawn) if "magnitude" in name else drawn)
    write_peft(adapters, folder, base_model=str(base))
    return folder


def as_gguf(base: Path, file: Path, dtype: str) -> Path:
    """A model's folder as a GGUF file."""
    adapter = adapter_in(
        base.parent / "zero", base, layers_of(AutoConfig.from_pretrained(base).model_type)[:1], size=0.0
    )
    words = ["export", adapter, "--to", file, "--format", "gguf", "--dtype", dtype]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return file
