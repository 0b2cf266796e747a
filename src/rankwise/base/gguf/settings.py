"""A model's settings as GGUF names them, for what reads the file instead of a config.json.

What llama.cpp fixes in its code (which layers of Gemma look at a window, which of SmolLM3 have no positions) is
compared with the model's own settings. A model that would be computed otherwise is refused with all reasons at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankwise.base.gguf.architectures import Architecture
from rankwise.config.base import shown
from rankwise.errors import ModelError

Settings = dict[str, int | float | bool | str]
ROPE_FREQS = "rope_freqs.weight"
WINDOWED_EVERY, NO_ROPE_EVERY = {"gemma2": 2, "gemma3": 6}, 4
"""In llama.cpp one layer of so many looks at the whole text, and one of so many has no positions."""
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the sizes whose attention llama.cpp scales by hidden size / heads instead of the width of a head."""
_NAMES = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
}


def settings_of(config: Mapping[str, Any], architecture: Architecture, described: str) -> Settings:
    """By key, without the architecture's name before it. ModelError where llama.cpp would compute another model."""
    settings: Settings = {}
    for key, names in _NAMES.items():
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if value is not None:
            settings[key] = int(value)
    if architecture.name == "gpt2":
        settings.setdefault("feed_forward_length", 4 * int(settings["embedding_length"]))
        settings["attention.layer_norm_epsilon"] = float(config["layer_norm_epsilon"])
        problems = _differing(config, {"activation_function": "gelu_new", "scale_attn_weights": True})
    else:
        settings["attention.layer_norm_rms_epsilon"] = float(config["rms_norm_eps"])
        problems = _add_positions(settings, config, architecture)
    problems += _of_family(settings, config, architecture)
    if problems:
        raise ModelError("\n  ".join([
            f"{described} cannot be written as GGUF, because llama.cpp would compute another model from it:", *problems,
            "Use --format merged; or, if you have a GGUF file of this base model, name it with --base-model FILE.gguf.",
        ]))  # fmt: skip
    return settings


def _add_positions(settings: Settings, config: Mapping[str, Any], architecture: Architecture) -> list[str]:
    """Add the width of a head and how positions turn it."""
    width = int(config.get("head_dim") or int(settings["embedding_length"]) // int(settings["attention.head_count"]))
    settings |= {"attention.key_length": width, "attention.value_length": width}
    every = config.get("rope_parameters") or {}
    rope = every.get("full_attention", every)
    settings["rope.freq_base"] = float(rope.get("rope_theta", 10_000.0))
    settings["rope.dimension_count"] = int(width * float(rope.get("partial_rotary_factor") or 1))
    kind, problems = rope.get("rope_type", "default"), []
    if kind == "linear":
        settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind not in ("default", "llama3") or (kind == "llama3" and architecture.name not in ("llama", "smollm3")):
        problems.append(f"its positions are of the type {shown(kind)}, which is not written yet.")
    if (windowed := every.get("sliding_attention")) is not None:
        settings["rope.freq_base_swa"] = float(windowed["rope_theta"])
        if windowed.get("rope_type", "default") != "default":
            problems.append("the positions of its windowed layers are scaled.")
    return problems


def _of_family(settings: Settings, config: Mapping[str, Any], architecture: Architecture) -> list[str]:
    name, layers = architecture.name, int(settings["block_count"])
    if name == "gpt2":
        return []
    activation = config.get("hidden_activation") or config.get("hidden_act")
    wanted = "gelu_pytorch_tanh" if name.startswith("gemma") else "silu"
    problems = [] if activation == wanted else [f"its activation is {shown(activation)} instead of {wanted}."]
    if name in WINDOWED_EVERY:
        return problems + _of_gemma(settings, config, name, layers)
    if name == "smollm3":
        expected = [int((layer + 1) % NO_ROPE_EVERY != 0) for layer in range(layers)]
        if list(config.get("no_rope_layers") or []) != expected:
            problems.append(f"not exactly every layer of number {NO_ROPE_EVERY} is without positions.")
    return problems


def window_note(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    """A sentence about a window that llama.cpp does not read; None where there is no such window."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if architecture.name in WINDOWED_EVERY or window is None or window >= int(config["max_position_embeddings"]):
        return None
    return (
        f"the model looks at a window of {window:,} tokens, and llama.cpp at the whole text, so answers to texts that "
        "are longer than this window may differ"
    )


def _of_gemma(settings: Settings, config: Mapping[str, Any], name: str, layers: int) -> list[str]:
    problems = []
    every = WINDOWED_EVERY[name]
    expected = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    if list(config.get("layer_types") or []) != expected:
        problems.append(f"not exactly every layer of number {every} looks at the whole text.")
    settings["attention.sliding_window"] = int(config["sliding_window"])
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key) is not None:
            settings[key] = float(config[key])
    if name == "gemma3" and config.get("attn_logit_softcapping") is not None:
        problems.append("its attention is capped.")
    heads, width = int(settings["attention.head_count"]), int(settings["attention.key_length"])
    scale = int(settings["embedding_length"]) // heads if layers == LARGEST_GEMMA[name] else width
    if float(config["query_pre_attn_scalar"]) != scale:
        problems.append(f"its query_pre_attn_scalar is {shown(config['query_pre_attn_scalar'])} instead of {scale}.")
    return problems


def _differing(config: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"its {name} is {shown(config.get(name))} instead of {shown(value)}."
        for name, value in expected.items()
        if config.get(name) != value
    ]


def computed_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors that GGUF has and transformers computes: how much slower Llama 3 turns each pair of a head (D/2,).

    With wavelength l of a pair, L the original context, f_low and f_high the two bounds and F the factor:
    1 where l < L / f_high, F where l > L / f_low, and between them 1 / ((1 - t) / F + t), t = (L / l - f_low) /
    (f_high - f_low).
    """
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return {}
    width = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    length = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = ((rope["original_max_position_embeddings"] / length - low) / (high - low)).clamp(0, 1)
    return {ROPE_FREQS: (1 / ((1 - share) / factor + share)).to(torch.float32)}
