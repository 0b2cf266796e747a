"""Adapters over tiny models, as folders, with numbers that training could have left."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from conftest import tiny_model
from rankwise.adapters.adalora import AdaLoRA
from rankwise.adapters.formats.peft import write_peft
from rankwise.adapters.set import AdapterSet
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.methods.inject import inject

IDS = torch.arange(48).reshape(2, 24) % 96
TABLES = {"llama": "embed_tokens", "gpt2": "wte", "neox": "embed_in", "gptj": "wte"}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def unsettle(adapters: AdapterSet, seed: int, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    for adapter in adapters.adapters().values():
        for part in adapter.modules():
            if isinstance(part, AdaLoRA):
                part.decided = True


def save_base(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    tiny_model(architecture).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_adapter(
    folder: Path, base: Path, architecture: str, spec: LoraConfig | AdaLoraConfig, seed: int = 1,
    model: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """Write the adapter; return the model with it live, in float64 computations of the base's stored weights."""
    model = tiny_model(architecture) if model is None else copy.deepcopy(model)
    adapters = inject(model, spec)
    unsettle(adapters, seed)
    write_peft(adapters, folder, base_model=str(base))
    return model
