"""The frozen layers that an adapter can be laid over, and the adapter that fits each.

A linear layer y = x W^T (weight (O, I)); GPT-2's Conv1D, the same with its weight stored as (I, O); an embedding,
whose rows are the outputs; a convolution over images, whose I is channels times kernel; the weights of all experts of a
block in one parameter (experts.py).

Some models have one fused layer for queries, keys and values. Which of its outputs are whose:

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
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankwise.adapters.adalora import AdaLoRA, FusedAdaLoRA
from rankwise.adapters.adapter import Adapter, Applied, conv_problem, on_conv2d, on_embedding, on_linear
from rankwise.adapters.experts import StackedWeight
from rankwise.adapters.lora import DoRA, LoRA
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.modules import HostKind
from rankwise.config.parameters import initial_rank
from rankwise.kernels.linear import is_conv1d

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


def is_linear(module: nn.Module) -> bool:
    """Attention blocks of torch read the weight of their NonDynamicallyQuantizableLinear without calling it."""
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def is_embedding(module: nn.Module) -> bool:
    """Plain tables only: a subclass may scale its rows, and a limit on their norm would rewrite our factor."""
    return type(module) is nn.Embedding and module.max_norm is None and not module.sparse


def is_conv2d(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and not conv_problem(module)


def kind_of(module: nn.Module) -> HostKind | None:
    """None for what cannot be adapted."""
    if is_linear(module):
        return "linear"
    if is_conv1d(module):
        return "conv1d"
    if isinstance(module, StackedWeight):
        return "experts"
    return "embedding" if is_embedding(module) else "conv2d" if is_conv2d(module) else None


def is_host(module: nn.Module) -> bool:
    return kind_of(module) is not None


def is_transposed(module: nn.Module) -> bool:
    """Whether the stored weight is (I, O)."""
    if isinstance(module, StackedWeight):
        return module.is_transposed
    return is_conv1d(module) or is_embedding(module)


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor), f"{type(module).__name__} has no weight"
    return weight


def features_of(module: nn.Module) -> tuple[int, int]:
    """(I, O) of a base layer, of each of its experts."""
    weight = weight_of(module)
    if is_conv2d(module):
        return weight[0].numel(), weight.shape[0]
    rows, columns = weight.shape[-2:]
    return (rows, columns) if is_transposed(module) else (columns, rows)


def experts_of(module: nn.Module) -> int:
    """How many experts' weights a base layer holds; 0 for a layer that is no mixture's."""
    return len(weight_of(module)) if isinstance(module, StackedWeight) else 0


def applied_to(module: nn.Module) -> Applied:
    """How factors act on this base layer."""
    if isinstance(module, nn.Embedding):
        return on_embedding(module)
    return on_conv2d(module) if isinstance(module, nn.Conv2d) else on_linear


def lora_for(
    module: nn.Module, rank: int, scale: float, dropout: float, generator: torch.Generator, *, dora: bool = False
) -> LoRA:
    """A new LoRA (or DoRA) on the base layer's device, in float32."""
    if dora:
        adapter = DoRA(module, rank, scale, dropout, generator, transposed=is_transposed(module))
    else:
        adapter = LoRA(
            *features_of(module), rank, scale, dropout, generator, applied_to(module),
            looked_up=is_embedding(module), experts=experts_of(module),
        )  # fmt: skip
    return adapter.to(weight_of(module).device)


def adalora_for(
    module: nn.Module, config: AdaLoraConfig, mean_rank: float, split: Split | None, generator: torch.Generator
) -> Adapter:
    """A new AdaLoRA on the base layer's device, in float32; of a fused base layer one for each part."""
    inside, outside = features_of(module)
    dropout = 0.0 if is_embedding(module) else config.dropout

    def part(outputs: int) -> AdaLoRA:
        rank = initial_rank(mean_rank, (inside, outputs), config.initial)
        return AdaLoRA(
            inside, outputs, rank, scale=config.scale, dropout=dropout, generator=generator, applied=applied_to(module),
            start=config.start, looked_up=is_embedding(module),
        )  # fmt: skip

    if split is None:
        return part(outside).to(weight_of(module).device)
    fused = FusedAdaLoRA([part(len(rows)) for rows in split.rows], split.rows, split.names)
    return fused.to(weight_of(module).device)


def oriented(module: nn.Module, delta: Tensor) -> Tensor:
    """A change (O, I), or one of each expert, in the shape of the base layer's weight."""
    return delta.mT if is_transposed(module) else delta.view_as(weight_of(module))


@torch.no_grad()
def plain_lora(base_layer: nn.Module, adapter: Adapter) -> LoRA:
    """A LoRA (two factors) that makes the same change as another adapter, such as one of AdaLoRA."""
    A, B = adapter.factors()
    assert adapter.additive, "two factors would not be the same change"
    lora = lora_for(base_layer, A.shape[0], adapter.scale, adapter.dropout, torch.Generator())
    lora.A.copy_(A)
    lora.B.copy_(B)
    return lora.train(adapter.training)
