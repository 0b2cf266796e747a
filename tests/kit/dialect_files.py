"""Adapter files as other tools write them, with the change of each layer by that tool's own formula.

Each writer makes random factors for a model, stores them in its tool's format, and returns where they lie and what they
change: the weight's change (O, I) by path, computed as the tool computes it and not as our reader does.
bench/dialects.py compares with the tools themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import tiny_model
from rankwise.adapters.base_layers import features_of, is_embedding

RANK = 3


@dataclass
class Written:
    path: Path
    """What a user names."""
    model: nn.Module
    deltas: dict[str, Tensor] = field(default_factory=dict)
    """In float64."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def size(model: nn.Module, path: str) -> tuple[int, int]:
    return features_of(model.get_submodule(path))


def paths_of(model: nn.Module, *leaves: str) -> list[str]:
    return [path for path, _ in model.named_modules() if path.rpartition(".")[2] in leaves]


def mlx(folder: Path, model: nn.Module | None = None, **settings: object) -> Written:
    written = Written(folder, model or tiny_model("llama"))
    tensors, scale = {}, 7.5
    for at, path in enumerate(paths_of(written.model, "q_proj", "down_proj", "embed_tokens")):
        inside, outside = size(written.model, path)
        a, b = numbers(inside, RANK, seed=at), numbers(RANK, outside, seed=at + 50)
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        written.deltas[path] = (scale * b.double().T) @ a.double().T
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora", "num_layers": 2, "model": "tiny", "iters": 5,
        "lora_parameters": {"rank": RANK, "scale": scale, "dropout": 0.1},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return written


def mlx_dora(folder: Path) -> Written:
    """The change of the whole weight: m (W + D) / |W + D| - W."""
    written = mlx(folder, fine_tune_type="dora")
    from safetensors.torch import load_file

    tensors = {key: value for key, value in load_file(folder / "adapters.safetensors").items() if "embed" not in key}
    written.deltas = {path: delta for path, delta in written.deltas.items() if "embed" not in path}
    for path, delta in written.deltas.items():
        weight = written.model.get_submodule(path).weight.detach()
        tensors[f"{path}.m"] = magnitude = weight.norm(dim=1) * 1.3
        adapted = weight.double() + delta
        written.deltas[path] = magnitude.double()[:, None] * adapted / adapted.norm(dim=1, keepdim=True) - weight
    save_file(tensors, folder / "adapters.safetensors")
    return written


def wide_llama() -> nn.Module:
    """Heads whose size is no quotient of the width, and fewer of them for key and value."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


GGUF_NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "down_proj": "ffn_down"}


def gguf(folder: Path, model: nn.Module | None = None, alpha: float = 10.0, kind: str = "F32") -> Written:
    """llama.cpp's file: the rows of query and key are in the order of the original checkpoints."""
    from gguf import GGUFWriter

    written = Written(folder / "adapter.gguf", model or wide_llama())
    writer = GGUFWriter(written.path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for at, path in enumerate([*paths_of(written.model, *GGUF_NAMES), "model.embed_tokens"]):
        inside, outside = size(written.model, path)
        A, B = numbers(RANK, inside, seed=at), numbers(outside, RANK, seed=at + 50)
        A, B = (one.half().float() if kind == "F16" else one for one in (A, B))
        written.deltas[path] = B.double() @ A.double() * (alpha / RANK if alpha else 1.0)
        leaf = path.rpartition(".")[2]
        if leaf in ("q_proj", "k_proj"):  # (heads, 2, 8) -> (heads, 8, 2)
            heads = {"q_proj": 4, "k_proj": 2}[leaf]
            B = B.reshape(heads, 2, outside // heads // 2, RANK).swapaxes(1, 2).reshape(B.shape)
        name = "token_embd" if leaf == "embed_tokens" else f"blk.{path.split('.')[2]}.{GGUF_NAMES[leaf]}"
        if is_embedding(written.model.get_submodule(path)):
            A = A.T
        stored = np.float16 if kind == "F16" else np.float32
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(A.numpy()).astype(stored))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(B.numpy()).astype(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


WRITERS: dict[str, Callable[[Path], Written]] = {
    "mlx": mlx,
    "mlx-dora": mlx_dora,
    "gguf": gguf,
    "gguf-f16": lambda folder: gguf(folder, kind="F16"),
    "gguf-alpha-0": lambda folder: gguf(folder, alpha=0.0),
}
