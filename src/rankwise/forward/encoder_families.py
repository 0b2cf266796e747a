"""One block of each family of encoders: how it combines kernels and its own modules, with or without adapters.

ViT      x = x + s1 o(attention(q, k, v of norm(x))),   x = x + s2 fc2(f(fc1(norm(x))))       s1 = s2 = 1 but in DINOv2
BERT     x = norm(x + o(attention(q, k, v of x))),      x = norm(x + fc2(f(fc1(x))))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from rankwise.forward.decoders.parts import fed_forward, layer_norm, linears
from rankwise.kernels.full_attention import full_attention
from rankwise.kernels.prologue import Identity, apply_prologue


class Family(Protocol):
    def suits(self, block: Any) -> bool:
        """Tell whether a block has the parts that its class usually has."""
        ...

    def block(self, block: Any, x: Tensor, rows: int, real: Tensor | None) -> Tensor:
        """Map (rows * T, d) to the same shape. `real` (rows, T) is false at padding."""
        ...


@dataclass(frozen=True)
class PreNorm:
    """ViT and its like; names are those of a block's parts."""

    attention: str
    output: str
    """The projection behind attention, inside it."""
    norms: tuple[str, str]
    scale: str
    """The factor of attention's scores, inside it."""
    layer_scales: tuple[str, str] | None = None

    def suits(self, block: Any) -> bool:
        return hasattr(block.mlp, "fc1") and hasattr(block.mlp, "fc2")

    def block(self, block: Any, x: Tensor, rows: int, real: Tensor | None) -> Tensor:
        attention, mlp = getattr(block, self.attention), block.mlp
        norm1, norm2 = (layer_norm(getattr(block, name)) for name in self.norms)
        q, k, v = linears([attention.q_proj, attention.k_proj, attention.v_proj], norm1, x)
        seen = full_attention(q, k, v, rows, q.shape[1] // attention.head_dim, getattr(attention, self.scale), real)
        add1, add2 = self._adders(block)
        x = add1(x, linears([getattr(attention, self.output)], Identity(), seen)[0])
        return add2(x, fed_forward([mlp.fc1], mlp.activation_fn, mlp.fc2, norm2, x))

    def _adders(self, block: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        if self.layer_scales is None:
            return (torch.add, torch.add)
        return tuple(partial(_scaled_add, getattr(block, name).lambda1) for name in self.layer_scales)


def _scaled_add(scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.addcmul(x, y, scale)


@dataclass(frozen=True)
class PostNorm:
    """BERT and RoBERTa."""

    def suits(self, block: Any) -> bool:
        return not block.is_decoder and not block.add_cross_attention and not block.chunk_size_feed_forward

    def block(self, block: Any, x: Tensor, rows: int, real: Tensor | None) -> Tensor:
        attention, behind, after = block.attention.self, block.attention.output, block.output
        q, k, v = linears([attention.query, attention.key, attention.value], Identity(), x)
        seen = full_attention(q, k, v, rows, attention.num_attention_heads, attention.scaling, real)
        x = apply_prologue(layer_norm(behind.LayerNorm), x + linears([behind.dense], Identity(), seen)[0])
        inner = block.intermediate
        fed = fed_forward([inner.dense], inner.intermediate_act_fn, after.dense, Identity(), x)
        return apply_prologue(layer_norm(after.LayerNorm), x + fed)


_CLIP = PreNorm("self_attn", "out_proj", ("layer_norm1", "layer_norm2"), "scale")
_VIT = PreNorm("attention", "o_proj", ("layernorm_before", "layernorm_after"), "scaling")
_DINOV2 = PreNorm("attention", "o_proj", ("norm1", "norm2"), "scaling", ("layer_scale1", "layer_scale2"))
FAMILIES: dict[str, Family] = {
    "ViTLayer": _VIT, "DeiTLayer": _VIT, "Dinov2Layer": _DINOV2, "CLIPEncoderLayer": _CLIP, "SiglipEncoderLayer": _CLIP,
    "BertLayer": PostNorm(), "RobertaLayer": PostNorm(),
}  # fmt: skip
"""By the class of a block."""


def real_of(mask: Tensor | None) -> Tensor | None:
    """(B, T) from the mask (B, 1, T or 1, T) that a model gives its blocks: true, or 0 where it is added to scores, at
    what is no padding."""
    if mask is None:
        return None
    keys = mask[:, 0, -1]
    return keys if keys.dtype == torch.bool else keys == 0
