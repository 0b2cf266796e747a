"""Llama, Mistral, Qwen2 and Qwen3: norm, attention with rotary positions, norm, gated feed-forward, in sequence.

    x = x + o(attention(q, k, v of norm(x))),   x = x + down(f(gate(norm(x))) up(norm(x)))

In Qwen3 the heads of q and k are normalised too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.forward.decoders.parts import angles, fed_forward, linears, turns_by_place
from rankwise.kernels.attention import causal_attention
from rankwise.kernels.norm import RmsNorm
from rankwise.kernels.prologue import Identity, Prologue, apply_prologue
from rankwise.kernels.rotary import rotated


@dataclass(frozen=True)
class Llama:
    blocks: Collection[str]
    norm: Callable[[Any], Prologue]
    """Makes the prologue from the module of a norm."""

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return model.layers

    def suits(self, model: Any, longest: int) -> bool:
        config = model.config
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return (window is None or window >= longest) and turns_by_place(model)

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        x = model.embed_tokens(batch.input_ids[0])
        return x, angles(model, x, batch)

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        attention = layer.self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        q, k, v = (
            values.view(len(x), -1, attention.head_dim)
            for values in linears(projections, self.norm(layer.input_layernorm), x)
        )
        if hasattr(attention, "q_norm"):
            q, k = apply_prologue(self.norm(attention.q_norm), q), apply_prologue(self.norm(attention.k_norm), k)
        q, k, v = (values.transpose(0, 1) for values in (q, k, v))
        return causal_attention(rotated(q, *context), rotated(k, *context), v, lengths, attention.scaling).flatten(1)

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        x = x + linears([layer.self_attn.o_proj], Identity(), seen)[0]
        return x + self.fed(layer.mlp, layer.post_attention_layernorm, x)

    def fed(self, mlp: Any, norm: nn.Module, x: Tensor) -> Tensor:
        return fed_forward([mlp.gate_proj, mlp.up_proj], mlp.act_fn, mlp.down_proj, self.norm(norm), x)

    def end(self, model: Any, x: Tensor) -> Tensor:
        return apply_prologue(self.norm(model.norm), x)


def _norm(module: Any) -> RmsNorm:
    return RmsNorm(module.weight, module.variance_epsilon)


LLAMA = Llama(("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"), _norm)
