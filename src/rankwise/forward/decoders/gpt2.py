"""GPT-2: learned positions; q, k and v as thirds of one matrix whose weight is stored as (I, O); no gated activation.

x = wte(token) + wpe(place),   x = x + c_proj(attention(norm(x))),   x = x + feed_forward(norm(x))
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.forward.decoders.parts import fed_forward, layer_norm, linears
from rankwise.kernels.attention import causal_attention
from rankwise.kernels.prologue import Identity, apply_prologue


@dataclass(frozen=True)
class GPT2:
    blocks: Collection[str] = ("GPT2Block",)

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return model.h

    def suits(self, model: Any, longest: int) -> bool:
        """Refuse `reorder_and_upcast_attn`, which computes scores in float32, and cross attention."""
        return not any(layer.attn.reorder_and_upcast_attn or hasattr(layer, "crossattention") for layer in model.h)

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        assert batch.position_ids is not None, "flat batches have them"
        return model.wte(batch.input_ids[0]) + model.wpe(batch.position_ids[0]), None

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        attention = layer.attn
        (fused,) = linears([attention.c_attn], layer_norm(layer.ln_1), x)
        q, k, v = fused.view(len(x), 3, -1, attention.head_dim).transpose(0, 2).unbind(1)
        return causal_attention(q, k, v, lengths, attention.scaling).flatten(1)

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        mlp = layer.mlp
        x = linears([layer.attn.c_proj], Identity(), seen)[0] + x
        return x + fed_forward([mlp.c_fc], mlp.act, mlp.c_proj, layer_norm(layer.ln_2), x)

    def end(self, model: Any, x: Tensor) -> Tensor:
        return apply_prologue(layer_norm(model.ln_f), x)
