"""GPT-NeoX: q, k and v of each head from one matrix, rotary positions on a part of the head, no gated activation.

x = x + dense(attention) + feed_forward(norm(x))        in parallel, or in sequence as in Llama
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.forward.decoders.parts import angles, fed_forward, layer_norm, linears, turns_by_place
from rankwise.kernels.attention import causal_attention
from rankwise.kernels.prologue import Identity, apply_prologue
from rankwise.kernels.rotary import rotated


@dataclass(frozen=True)
class NeoX:
    blocks: Collection[str] = ("GPTNeoXLayer",)

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return model.layers

    def suits(self, model: Any, longest: int) -> bool:
        return turns_by_place(model)

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        x = model.embed_in(batch.input_ids[0])
        return x, angles(model, x, batch)

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        attention = layer.attention
        (fused,) = linears([attention.query_key_value], layer_norm(layer.input_layernorm), x)
        q, k, v = fused.view(len(x), -1, 3, attention.head_size).transpose(0, 1).unbind(2)
        return causal_attention(rotated(q, *context), rotated(k, *context), v, lengths, attention.scaling).flatten(1)

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        mlp, norm = layer.mlp, layer_norm(layer.post_attention_layernorm)
        projected = linears([layer.attention.dense], Identity(), seen)[0]
        if layer.use_parallel_residual:
            return fed_forward([mlp.dense_h_to_4h], mlp.act, mlp.dense_4h_to_h, norm, x) + projected + x
        x = projected + x
        return fed_forward([mlp.dense_h_to_4h], mlp.act, mlp.dense_4h_to_h, norm, x) + x

    def end(self, model: Any, x: Tensor) -> Tensor:
        return apply_prologue(layer_norm(model.final_layer_norm), x)
