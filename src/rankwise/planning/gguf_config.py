"""A GGUF header into the settings of a config.json, as loading the file would have them.

Head and embedding are tied where no tensor of the head is held. The vocabulary is the table's. What the settings make
is held against the tensors: a model with other weights than these would be counted wrongly, and is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError
from rankwise.planning.gguf_header import GgufHeader, matrix_bytes, read_gguf_header
from rankwise.planning.shape import Build, ModelShape, NewHead, cached_shape

FAMILIES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "stablelm": "stablelm", "phi3": "phi3", "gpt2": "gpt2",
}  # fmt: skip
"""The model_type of each family whose GGUF files can be loaded, by the architecture that the file names."""
REQUIRED = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads", "feed_forward_length": "intermediate_size",
}  # fmt: skip
OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
}  # fmt: skip
NOT_OF_THE_MODEL = "rope_"
"""Tensors that begin so are computed from settings."""


def shape_of_gguf(file: Path, build: Build, head: NewHead | None = None) -> ModelShape:
    header = read_gguf_header(file)
    config = config_of_gguf(header, file)
    shape = cached_shape(config, str(file), str(file), build)
    held = sum(math.prod(size) for name, size in header.tensors.items() if not name.startswith(NOT_OF_THE_MODEL))
    if held != shape.parameters:
        raise ModelError(
            f"{file}: the header describes a {shape.family} model with {shape.parameters:,} parameters, but the "
            f"tensors have {held:,}. The header is wrong, or this layout is not supported."
        )
    if head is not None:
        shape = cached_shape(config, str(file), str(file), build, head)
    return replace(shape, name=file.name, file_bytes=matrix_bytes(header))


def config_of_gguf(header: GgufHeader, file: Path) -> dict[str, Any]:
    """What decides of which weights the model is made."""
    family = header.settings.get("general.architecture")
    if not isinstance(family, str) or family not in FAMILIES:
        told = 'setting "general.architecture" is missing' if family is None else f"architecture {shown(family)}"
        tail = "" if family is None else " is not supported"
        raise ModelError(f"{file}: {told}{tail}. Supported architectures: {', '.join(sorted(FAMILIES))}.")
    parts = header.settings.get("split.count", 1)
    if parts not in (0, 1):
        raise ModelError(f"{file} is one of {shown(parts)} parts (split.count); give the whole model as one file.")
    config = {
        "model_type": FAMILIES[family], "tie_word_embeddings": "output.weight" not in header.tensors,
        "pad_token_id": None,
    }  # fmt: skip
    problems = [f'setting "{family}.{key}" is missing.' for key in REQUIRED if f"{family}.{key}" not in header.settings]
    if "token_embd.weight" not in header.tensors:
        problems.append('tensor "token_embd.weight" is missing.')
    for key, name in (REQUIRED | OPTIONAL).items():
        value = header.settings.get(f"{family}.{key}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            problems.append(f'setting "{family}.{key}" is {shown(value)}: a whole number is expected.')
        elif value is not None:
            config[name] = value
    if problems:
        raise ModelError("\n  ".join([f"{file} does not describe a model that can be planned:", *problems]))
    return config | _of_family(family, header, config)


def _of_family(family: str, header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    """What one family has and the others have not, or calls otherwise."""
    more: dict[str, Any] = {"vocab_size": header.tensors["token_embd.weight"][-1]}
    if family == "llama" and "head_dim" not in config and "llama.rope.dimension_count" in header.settings:
        more["head_dim"] = header.settings["llama.rope.dimension_count"]
    if family == "stablelm":
        more["use_qkv_bias"] = "blk.0.attn_q.bias" in header.tensors
        more["qk_layernorm"] = "blk.0.attn_q_norm.weight" in header.tensors
        more["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in header.tensors
    if family == "gpt2":
        more |= {"n_inner": config["intermediate_size"]}
        if "position_embd.weight" in header.tensors:
            more["n_positions"] = more["max_position_embeddings"] = header.tensors["position_embd.weight"][-1]
    return more
