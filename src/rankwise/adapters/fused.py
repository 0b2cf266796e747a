"""Which outputs of a fused query-key-value layer are whose, for the models that have one.

    in thirds       q, k and v one after another: GPT-2, MPT, ModernBERT, timm's ViT, Swin, BEiT and EVA
    by heads        for each head its q, k and v: GPT-NeoX, BLOOM
    by groups       q, then k and v, which have fewer heads: Phi-3
    by shared heads for each head of k and v the heads of q that share it, then k and v: Falcon

A layout is known by the class of the attention and the layer's name; names and sizes alone would take others for these
(GPT-BigCode has GPT-2's name and other heads, CodeGen Phi-3's and other shards). An unknown one is adapted whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LAYOUTS = {
    ("GPT2Attention", "c_attn"): "thirds",
    ("MptAttention", "Wqkv"): "thirds",
    ("ModernBertAttention", "Wqkv"): "thirds",
    ("GPTNeoXAttention", "query_key_value"): "heads",
    ("BloomAttention", "query_key_value"): "heads",
    ("Phi3Attention", "qkv_proj"): "groups",
    ("FalconAttention", "query_key_value"): "shared heads",
}

TIMM = {
    "timm.layers.attention.Attention", "timm.models.beit.Attention", "timm.models.eva.EvaAttention",
    "timm.models.swin_transformer.WindowAttention", "timm.models.swin_transformer_v2.WindowAttention",
}  # fmt: skip
"""Classes whose `qkv` is in thirds; other classes of timm have the same names and other layouts."""


@dataclass(frozen=True)
class Split:
    """Names of the parts, and the places of each in the output."""

    names: tuple[str, ...]
    rows: tuple[Tensor, ...]


def split_of(model: nn.Module, path: str, outputs: int) -> Split | None:
    parent, _, leaf = path.rpartition(".")
    attention: Any = model.get_submodule(parent) if parent else model
    places = torch.arange(outputs)
    kind = type(attention)
    layout = "thirds" if leaf == "qkv" and f"{kind.__module__}.{kind.__name__}" in TIMM else None
    layout = LAYOUTS.get((kind.__name__, leaf), layout)
    if layout == "thirds" and outputs % 3 == 0 and not getattr(attention, "is_cross_attention", False):
        return _split(*places.chunk(3))
    head = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    if layout == "heads" and head and outputs % (3 * head) == 0:
        return _split(*(part.reshape(-1) for part in places.view(-1, 3, head).unbind(1)))
    if layout == "groups" and head:
        heads, shared = attention.config.num_attention_heads, attention.config.num_key_value_heads
        sizes = [heads * head, shared * head, shared * head]
        return _split(*places.split(sizes)) if sum(sizes) == outputs else None
    if layout == "shared heads" and head:
        shared = attention.num_kv_heads
        queries = attention.num_heads // shared
        if shared * (queries + 2) * head == outputs:
            q, k, v = places.view(shared, queries + 2, head).split([queries, 1, 1], dim=1)
            return _split(q.flatten(), k.flatten(), v.flatten())
    return None


def _split(*rows: Tensor) -> Split:
    return Split(("q", "k", "v"), rows)
