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
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

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


HYPERPARAMETERS = """\
checkpoint_dir: checkpoints/tiny
lora_r: 3
lora_alpha: 24
lora_dropout: 0.05
lora_query: true
lora_key: false
lora_value: true
lora_projection: true
lora_mlp: true
lora_head: true
data:
  class_path: litgpt.data.Alpaca
"""


def wide_llama() -> nn.Module:
    """Heads whose size is no quotient of the width, and fewer of them for key and value."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def phi3() -> nn.Module:
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=2, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return Phi3ForCausalLM(config).eval()


LIT_NAMES = {
    "llama": (
        "model.layers", {"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj", "mlp.proj": "mlp.down_proj"},
    ),
    "phi3": ("model.layers", {"attn.proj": "self_attn.o_proj", "mlp.proj": "mlp.down_proj"}),
    "neox": ("gpt_neox.layers", {"attn.proj": "attention.dense", "mlp.fc": "mlp.dense_h_to_4h"}),
}  # fmt: skip


def litgpt(folder: Path, family: str = "llama", hyperparameters: str = HYPERPARAMETERS) -> Written:
    model = {"llama": wide_llama, "phi3": phi3, "neox": lambda: tiny_model("neox")}[family]()
    written, tensors, scale = Written(folder, model), {}, 24 / RANK
    blocks, names = LIT_NAMES[family]
    for block in range(2):
        for at, (lit, ours) in enumerate(names.items()):
            inside, outside = size(model, path := f"{blocks}.{block}.{ours}")
            A, B = numbers(RANK, inside, seed=at + block), numbers(outside, RANK, seed=at + 70)
            tensors |= {f"transformer.h.{block}.{lit}.lora_{name}": one for name, one in (("A", A), ("B", B))}
            written.deltas[path] = scale * B.double() @ A.double()
        tensors |= _lit_attention(written, family, f"{blocks}.{block}", block, scale)
    if family == "phi3":
        for block in range(2):
            tensors |= _lit_gate_and_up(written, block, scale)
    head = "lm_head" if hasattr(model, "lm_head") else "embed_out"
    A, B = numbers(RANK, 32, seed=9), numbers(96, RANK, seed=9)
    tensors |= {"lm_head.lora_A": A, "lm_head.lora_B": B}
    written.deltas[head] = scale * B.double() @ A.double()
    save_file(tensors, folder / "lit_model.safetensors")
    (folder / "hyperparameters.yaml").write_text(hyperparameters)
    (folder / "model_config.yaml").write_text("name: tiny\nhf_config:\n  name: tiny-llama\n  org: somebody\n")
    return written


def _lit_attention(written: Written, family: str, prefix: str, block: int, scale: float) -> dict[str, Tensor]:
    """Query and value of LitGPT's fused layer, as its grouped convolution and zero_pad have them."""
    model = written.model
    heads, groups, head = {"llama": (4, 2, 16), "phi3": (4, 2, 8), "neox": (4, 4, 8)}[family]
    counts = (heads * head, groups * head, groups * head)
    A = numbers(2 * RANK, 32, seed=block + 20)
    B = numbers(counts[0] + counts[2], RANK, seed=block + 30)
    pieces = [b.double() @ a.double() for a, b in zip(A.chunk(2), B.split((counts[0], counts[2])), strict=True)]
    q, k, v = scale * pieces[0], torch.zeros(counts[1], 32, dtype=torch.float64), scale * pieces[1]
    if family == "llama":
        written.deltas |= {f"{prefix}.self_attn.q_proj": q, f"{prefix}.self_attn.v_proj": v}
    elif family == "phi3":
        written.deltas[f"{prefix}.self_attn.qkv_proj"] = torch.cat((q, k, v))
    else:  # q of one head, its k, its v, then the next head
        turns = [turn for group in zip(q.split(head), k.split(head), v.split(head), strict=True) for turn in group]
        written.deltas[f"{prefix}.attention.query_key_value"] = torch.cat(turns)
    assert sum(counts) == sum(delta.shape[0] for path, delta in written.deltas.items()
                              if path.startswith(f"{prefix}.") and "qkv" in path) or family != "phi3"  # fmt: skip
    assert model is written.model
    return {f"transformer.h.{block}.attn.qkv.lora_A": A, f"transformer.h.{block}.attn.qkv.lora_B": B}


def _lit_gate_and_up(written: Written, block: int, scale: float) -> dict[str, Tensor]:
    tensors, halves = {}, []
    for at, name in enumerate(("fc_1", "fc_2")):
        A, B = numbers(RANK, 32, seed=at + 40 + block), numbers(48, RANK, seed=at + 45 + block)
        tensors |= {f"transformer.h.{block}.mlp.{name}.lora_A": A, f"transformer.h.{block}.mlp.{name}.lora_B": B}
        halves.append(scale * B.double() @ A.double())
    written.deltas[f"model.layers.{block}.mlp.gate_up_proj"] = torch.cat(halves)
    return tensors


def loralib(folder: Path, model: nn.Module | None = None, alpha: str | None = "6") -> Written:
    written, tensors = Written(folder / "lora.safetensors", model or tiny_model("llama")), {}
    scale = float(alpha or 1) / RANK
    for at, path in enumerate(paths_of(written.model, "q_proj", "v_proj", "embed_tokens")):
        inside, outside = size(written.model, path)
        A, B = numbers(RANK, inside, seed=at), numbers(outside, RANK, seed=at + 50)
        tensors |= {f"{path}.lora_A": A, f"{path}.lora_B": B}
        written.deltas[path] = scale * B.double() @ A.double()
    save_file(tensors, written.path, {} if alpha is None else {"lora_alpha": alpha})
    return written


def loralib_fused(folder: Path) -> Written:
    """MergedLinear with query and value, as its convolution in groups computes it."""
    written, tensors = Written(folder / "lora.safetensors", tiny_model("gpt2")), {}
    for block in range(2):
        path = f"transformer.h.{block}.attn.c_attn"
        A, B = numbers(2 * RANK, 32, seed=block), numbers(64, RANK, seed=block + 50)
        tensors |= {f"{path}.lora_A": A, f"{path}.lora_B": B}
        change = F.conv1d(A.double()[None], B.double()[..., None], groups=2)[0] * (4 / RANK)
        padded = torch.zeros(96, 32, dtype=torch.float64)
        padded[torch.tensor([True, False, True]).repeat_interleave(32)] = change
        written.deltas[path] = padded
    save_file(tensors, written.path, {"lora_alpha": "4", "enable_lora": "[True, False, True]"})
    return written


def adalora(folder: Path) -> Written:
    """AdaLoRA's own library: pruned singular values are zero."""
    written, tensors = Written(folder / "lora.safetensors", tiny_model("llama")), {}
    for at, path in enumerate(paths_of(written.model, "q_proj", "up_proj")):
        inside, outside = size(written.model, path)
        A, B, E = numbers(4, inside, seed=at), numbers(outside, 4, seed=at + 50), numbers(4, 1, seed=at)
        E[1] = 0
        tensors |= {f"{path}.lora_A": A, f"{path}.lora_B": B, f"{path}.lora_E": E}
        written.deltas[path] = B.double() @ (A.double() * E.double()) * (16 / (4 + 1e-5))
    save_file(tensors, written.path, {"lora_alpha": "16"})
    return written


def kohya(folder: Path, model: nn.Module | None = None, alphas: bool = True) -> Written:
    written, tensors = Written(folder / "kohya.safetensors", model or tiny_model("llama")), {}
    for at, path in enumerate(paths_of(written.model, "q_proj", "o_proj", "gate_proj")):
        inside, outside = size(written.model, path)
        rank = RANK + at % 2
        down, up = numbers(rank, inside, seed=at), numbers(outside, rank, seed=at + 50)
        name = f"lora_te_{path.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alphas:
            tensors[f"{name}.alpha"] = torch.tensor(1.5 + at)
        written.deltas[path] = up.double() @ down.double() * ((1.5 + at) / rank if alphas else 1.0)
    save_file(tensors, written.path, {"ss_network_dim": "3"})
    return written


def diffusers(folder: Path, metadata: bool = True) -> Written:
    written, tensors = Written(folder / "pytorch_lora_weights.safetensors", tiny_model("llama")), {}
    for at, path in enumerate(paths_of(written.model, "q_proj", "v_proj")):
        inside, outside = size(written.model, path)
        rank = 2 if "layers.1" in path else RANK
        A, B = numbers(rank, inside, seed=at), numbers(outside, rank, seed=at + 50)
        tensors |= {f"text_encoder.{path}.lora_A.weight": A, f"text_encoder.{path}.lora_B.weight": B}
        written.deltas[path] = B.double() @ A.double() * (12 / rank**0.5 if metadata else 1.0)
    config = {"r": RANK, "lora_alpha": 12, "use_rslora": True, "rank_pattern": {r"layers\.1\.self_attn\..*": 2},
              "target_modules": ["q_proj", "v_proj"], "bias": "none"}  # fmt: skip
    text = json.dumps({f"text_encoder.{key}": value for key, value in config.items()})
    save_file(tensors, written.path, {"format": "pt"} | ({"lora_adapter_metadata": text} if metadata else {}))
    return written


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
    "litgpt": litgpt,
    "litgpt-phi3": lambda folder: litgpt(folder, "phi3"),
    "litgpt-neox": lambda folder: litgpt(folder, "neox"),
    "loralib": loralib,
    "loralib-fused": loralib_fused,
    "loralib-adalora": adalora,
    "diffusers-kohya": kohya,
    "diffusers-no-alpha": lambda folder: kohya(folder, alphas=False),
    "diffusers": diffusers,
    "diffusers-bare": lambda folder: diffusers(folder, metadata=False),
    "gguf": gguf,
    "gguf-f16": lambda folder: gguf(folder, kind="F16"),
    "gguf-alpha-0": lambda folder: gguf(folder, alpha=0.0),
}
