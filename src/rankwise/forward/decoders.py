"""Decoder families, one class for each way of computing a block, and the parts that all of them share.

Llama, Mistral, Qwen2, Qwen3    norm, attention with rotary positions, norm, gated feed-forward, in sequence:

        x = x + o(attention(q, k, v of norm(x))),   x = x + down(f(gate(norm(x))) up(norm(x)))

GPT-2       learned positions; q, k and v as thirds of one matrix whose weight is stored as (I, O); no gated activation
GPT-NeoX    q, k and v of each head from one matrix, rotary positions on a part of the head; attention and feed-forward
            in parallel, or in sequence
Gemma       Llama's blocks with other norms; the embedding module scales its own output. A block of Gemma 3 has two more
            norms, on the outputs of attention and feed-forward layer, and rotary angles of two kinds, for blocks with
            sliding-window attention and for those with full attention. Gemma 2 is not supported, because no kernel has
            soft caps

In Qwen3 the heads of q and k are normalised too. The loop over the blocks is in fused.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from rankwise.base.rotary_names import BY_LENGTH
from rankwise.kernels.attention import causal_attention, rotated
from rankwise.kernels.linear import Identity, Prologue, apply_prologue, linear_spec_of, shared_linears
from rankwise.kernels.norm import Activation, ActivationPrologue, LayerNorm, RmsNorm, ShiftedRmsNorm
from rankwise.rows.encoded.batches import Batch


@dataclass(frozen=True)
class DecoderParts:
    """A model of Llama's blocks, for kernels/decode.py. A block has norms before attention and before the feed-forward
    layer, and for the heads of q and k, if any; its linear layers are q, k, v, o, gate, up and down. A head has `size`
    numbers, and its scores are multiplied by `scale`."""

    norms: Sequence[Sequence[RmsNorm]]
    linears: Sequence[Sequence[nn.Module]]
    last: RmsNorm
    activation: str
    scale: float
    size: int


class Decoder(Protocol):
    """`model` is the part below the head, `layer` one of its blocks; both are transformers' modules, with or without
    adapters."""

    @property
    def blocks(self) -> Collection[str]:
        """Names of the supported block classes."""
        ...

    def layers(self, model: Any) -> Sequence[nn.Module]: ...

    def suits(self, model: Any, longest: int) -> bool:
        """Tell whether every feature that the model uses is supported, for sequences of at most so many tokens."""
        ...

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Return the input of the first block (T, d) and what all blocks share (rotary angles, or None)."""
        ...

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        """Map (T, d) to attention outputs (T, H * D), before the output projection. Only here do tokens see other
        tokens."""
        ...

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        """Map a block's input and attention output at any N positions to the block's output at these positions."""
        ...

    def end(self, model: Any, x: Tensor) -> Tensor:
        """Map the output of the last block to the input of the head."""
        ...

    def parts(self, model: Any) -> DecoderParts | None:
        """Return what the model is made of where its blocks are Llama's, all with the same settings; None for
        others."""
        ...


ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu-tanh",
    "NewGELUActivation": "gelu-tanh",
}
"""Kernels by the class of the activation module; any other module is called as it is."""


def linears(modules: Sequence[nn.Module], prologue: Prologue, *values: Tensor) -> Sequence[Tensor]:
    """Apply linear layers to the output of `prologue`, as one autograd function unless an adapter on one of them has no
    two-factor form."""
    specs = [linear_spec_of(module) for module in modules]
    there = [spec for spec in specs if spec is not None]
    if len(there) == len(specs):
        return shared_linears(prologue, values, there)
    x = apply_prologue(prologue, *values)
    return [module(x) for module in modules]


def fed_forward(ups: Sequence[nn.Module], act: nn.Module, down: nn.Module, norm: Prologue, x: Tensor) -> Tensor:
    """Apply a feed-forward layer. `ups` is the layer whose output is activated, or the pair of gate and up
    projection."""
    values = linears(ups, norm, x)
    known = ACTIVATIONS.get(type(act).__name__)
    if known is not None:
        return linears([down], ActivationPrologue(known), *values)[0]
    active = act(values[0])
    return linears([down], Identity(), active if len(values) == 1 else active * values[1])[0]


def layer_norm(module: nn.Module) -> LayerNorm:
    parts: Any = module
    return LayerNorm(parts.weight, parts.bias, parts.eps)


def angles(model: Any, x: Tensor, batch: Batch, *kind: str) -> tuple[Tensor, ...]:
    """Return cosines and sines (T, D), or fewer columns if only a part of a head is rotated."""
    return tuple(values[0] for values in model.rotary_emb(x[None], batch.position_ids, *kind))


def turns_by_place(model: Any) -> bool:
    """Tell whether rotary angles depend only on a token's position in its sequence."""
    kinds = getattr(getattr(model, "rotary_emb", None), "rope_type", "dynamic")
    return BY_LENGTH.keys().isdisjoint(kinds.values() if isinstance(kinds, dict) else [kinds])


@dataclass(frozen=True)
class Llama:
    blocks: Collection[str]
    norm: Callable[[Any], RmsNorm]
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
        if of_heads := self._norms_of_heads(attention):
            q, k = (apply_prologue(norm, values) for norm, values in zip(of_heads, (q, k), strict=True))
        q, k, v = (values.transpose(0, 1) for values in (q, k, v))
        return causal_attention(rotated(q, *context), rotated(k, *context), v, lengths, attention.scaling).flatten(1)

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        x = x + linears([layer.self_attn.o_proj], Identity(), seen)[0]
        return x + self.fed(layer.mlp, layer.post_attention_layernorm, x)

    def fed(self, mlp: Any, norm: nn.Module, x: Tensor) -> Tensor:
        return fed_forward([mlp.gate_proj, mlp.up_proj], mlp.act_fn, mlp.down_proj, self.norm(norm), x)

    def end(self, model: Any, x: Tensor) -> Tensor:
        return apply_prologue(self.norm(model.norm), x)

    def parts(self, model: Any) -> DecoderParts | None:
        norms, linears, settings = list[list[RmsNorm]](), list[list[nn.Module]](), set[tuple[str, float, int]]()
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            before = map(self.norm, (layer.input_layernorm, layer.post_attention_layernorm))
            norms.append([*before, *self._norms_of_heads(attention)])
            of_attention = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
            linears.append([*of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj])
            settings.add((ACTIVATIONS.get(type(mlp.act_fn).__name__, ""), attention.scaling, attention.head_dim))
        return DecoderParts(norms, linears, self.norm(model.norm), *settings.pop()) if len(settings) == 1 else None

    def _norms_of_heads(self, attention: Any) -> list[RmsNorm]:
        """Return those of q and k, if any."""
        return [self.norm(attention.q_norm), self.norm(attention.k_norm)] if hasattr(attention, "q_norm") else []


def _norm(module: Any) -> RmsNorm:
    return RmsNorm(module.weight, module.variance_epsilon)


LLAMA = Llama(("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"), _norm)


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

    def parts(self, model: Any) -> DecoderParts | None:
        return None


def _shifted_norm(module: Any) -> ShiftedRmsNorm:
    return ShiftedRmsNorm(module.weight, module.eps)


GEMMA = Gemma(("GemmaDecoderLayer",), _shifted_norm)
GEMMA3 = Gemma3(("Gemma3DecoderLayer",), _shifted_norm)


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

    def parts(self, model: Any) -> DecoderParts | None:
        return None


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

    def parts(self, model: Any) -> DecoderParts | None:
        return None
