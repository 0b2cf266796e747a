"""Gemma and Gemma 3 (text): Llama's blocks with other norms; the embedding module scales its own output.

A block of Gemma 3 has two more norms, on the outputs of attention and feed-forward layer, and rotary angles of two
kinds, for blocks with sliding-window attention and for those with full attention. Gemma 2 is not supported, because no
kernel has soft caps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rankwise.data.batches import Batch
from rankwise.forward.decoders.llama import Llama
from rankwise.forward.decoders.parts import angles, linears
from rankwise.kernels.norm import ShiftedRmsNorm
from rankwise.kernels.prologue import Identity, apply_prologue


class Gemma(Llama):
    def suits(self, model: Any, longest: int) -> bool:
        """Refuse bidirectional attention, which newer versions can be configured for."""
        return super().suits(model, longest) and all(layer.self_attn.is_causal for layer in model.layers)


class Gemma3(Gemma):
    def suits(self, model: Any, longest: int) -> bool:
        return super().suits(model, longest) and model.config.attn_logit_softcapping is None

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        x = model.embed_tokens(batch.input_ids[0])
        return x, {kind: angles(model, x, batch, kind) for kind in set(model.config.layer_types)}

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        return super().attended(layer, x, context[layer.self_attn.layer_type], lengths)

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        projected = linears([layer.self_attn.o_proj], Identity(), seen)[0]
        x = x + apply_prologue(self.norm(layer.post_attention_layernorm), projected)
        fed = self.fed(layer.mlp, layer.pre_feedforward_layernorm, x)
        return x + apply_prologue(self.norm(layer.post_feedforward_layernorm), fed)


def _norm(module: Any) -> ShiftedRmsNorm:
    return ShiftedRmsNorm(module.weight, module.eps)


GEMMA = Gemma(("GemmaDecoderLayer",), _norm)
GEMMA3 = Gemma3(("Gemma3DecoderLayer",), _norm)
