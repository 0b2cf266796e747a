"""Which outputs of a fused query-key-value layer are whose, for the models that have one.

    GPT-2          c_attn             q, k and v one after another, a third each
    GPT-NeoX       query_key_value    for each head its q, k and v
    Phi-3          qkv_proj           q, then k and v, which have fewer heads
    ViT (timm), MPT, ModernBERT       qkv, Wqkv: a third each

A fused layer is known by its name and by what its attention says of itself. One whose layout is not known for sure is
adapted whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

THIRDS = ("c_attn", "Wqkv", "qkv")


@dataclass(frozen=True)
class Split:
    """Names of the parts, and the places of each in the output."""

    names: tuple[str, ...]
    rows: tuple[Tensor, ...]


def split_of(model: nn.Module, path: str, outputs: int) -> Split | None:
    parent, _, leaf = path.rpartition(".")
    attention: Any = model.get_submodule(parent) if parent else model
    sizes = _sizes(attention, leaf, outputs)
    if sizes is None:
        return None
    places = torch.arange(outputs)
    if leaf == "query_key_value":
        rows = places.view(-1, 3, sizes[0]).unbind(1)
        return Split(("q", "k", "v"), tuple(part.reshape(-1) for part in rows))
    return Split(("q", "k", "v"), places.split(sizes))


def _sizes(attention: Any, leaf: str, outputs: int) -> list[int] | None:
    """Of q, k and v; for query_key_value of one head."""
    config = getattr(attention, "config", None)
    head = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    heads = getattr(config, "num_attention_heads", None)
    if leaf in THIRDS and outputs % 3 == 0 and not getattr(config, "multi_query", False):
        crosses = getattr(attention, "is_cross_attention", False)  # GPT-2's c_attn then holds k and v alone
        return None if crosses else [outputs // 3] * 3
    if leaf == "query_key_value" and type(attention).__name__ == "GPTNeoXAttention" and head and heads:
        return [head] if outputs == heads * 3 * head else None
    if leaf == "qkv_proj" and head and heads:
        shared = getattr(config, "num_key_value_heads", None) or heads
        sizes = [heads * head, shared * head, shared * head]
        return sizes if sum(sizes) == outputs else None
    return None
