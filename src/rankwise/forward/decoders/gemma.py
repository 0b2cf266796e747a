"""Gemma and Gemma 3 (text): Llama's blocks with other norms, and embeddings that their own module scales.

Gemma 3 has two more norms in a block, over what attention and feed-forward layer give, and angles of two kinds, for
the blocks that see a window and for those that see all. Gemma 2 has soft caps, which no kernel has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rankwise.data.batches import Batch
from rankwise.forward.decoders.llama import Llama
from rankwise.forward.decoders.parts import angles, linears
from rankwise.kernels.norm import ShiftedRmsNorm
from rankwise.kernels.prologue import Straight, entered


class Gemma(Llama):
    def suits(self, model: Any, longest: int) -> bool:
        """Newer ones can be told to see what comes after."""
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
        projected = linears([layer.self_attn.o_proj], Straight(), seen)[0]
        x = x + entered(self.norm(layer.post_attention_layernorm), projected)
        fed = self.fed(layer.mlp, layer.pre_feedforward_layernorm, x)
        return x + entered(self.norm(layer.post_feedforward_layernorm), fed)


def _norm(module: Any) -> ShiftedRmsNorm:
    return ShiftedRmsNorm(module.weight, module.eps)


GEMMA = Gemma(("GemmaDecoderLayer",), _norm)
GEMMA3 = Gemma3(("Gemma3DecoderLayer",), _norm)
