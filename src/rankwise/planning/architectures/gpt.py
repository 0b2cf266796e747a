"""Decoders of GPT's form: biases, plain feed-forward layers, as many keys as queries.

GPT-2       transformer.h.N.attn.{c_attn,c_proj}        transformer.h.N.mlp.{c_fc,c_proj}, all Conv1D
GPT-J       transformer.h.N.attn.{k,v,q,out}_proj       transformer.h.N.mlp.{fc_in,fc_out}
GPT-NeoX    gpt_neox.layers.N.attention.{query_key_value,dense}   ....mlp.{dense_h_to_4h,dense_4h_to_h}
OPT         model.decoder.layers.N.self_attn.{k,v,q,out}_proj     model.decoder.layers.N.{fc1,fc2}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from rankwise.planning.architectures.config import Config, Count, Flag, Heads, Table, Width, uneven
from rankwise.planning.architectures.parts import conv1d, head, linear, norm, other, repeated, table
from rankwise.planning.shape import Blocks, Layer

POSITIONS_BEFORE = 2
"""Rows that OPT and BART have before the first position."""


class Gpt(Config):
    """What GPT-2 and GPT-J call alike."""

    vocab_size: Table
    n_positions: Table
    n_embd: Width
    n_layer: Count
    n_head: Heads
    n_inner: Width | None = None
    tie_word_embeddings: Flag = True

    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }  # fmt: skip

    def contradictions(self) -> Iterator[str]:
        yield from uneven(self.n_head, self.n_embd, "n_embd", "n_head")

    @property
    def inner(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def context(self) -> int:
        return self.n_positions

    @property
    def tied_to(self) -> str | None:
        return "transformer.wte" if self.tie_word_embeddings else None

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        return (plain_blocks(self.n_layer, self.n_embd, self.n_head, self.inner),)


class Gpt2(Gpt):
    def layers(self) -> Iterator[Layer]:
        width = self.n_embd
        yield table("transformer.wte", self.vocab_size, width)
        yield table("transformer.wpe", self.n_positions, width)
        block = [
            norm("ln_1", width),
            conv1d("attn.c_attn", width, 3 * width, parts=(width, width, width)),
            conv1d("attn.c_proj", width, width),
            norm("ln_2", width),
            conv1d("mlp.c_fc", width, self.inner),
            conv1d("mlp.c_proj", self.inner, width),
        ]
        yield from repeated("transformer.h", self.n_layer, block)
        yield norm("transformer.ln_f", width)
        yield head("lm_head", width, self.vocab_size, tied_to=self.tied_to)


class GptJ(Gpt):
    tie_word_embeddings: Flag = False

    def layers(self) -> Iterator[Layer]:
        width = self.n_embd
        yield table("transformer.wte", self.vocab_size, width)
        block = [
            norm("ln_1", width),
            *(linear(f"attn.{name}_proj", width, width) for name in ("k", "v", "q", "out")),
            linear("mlp.fc_in", width, self.inner, bias=True),
            linear("mlp.fc_out", self.inner, width, bias=True),
        ]
        yield from repeated("transformer.h", self.n_layer, block)
        yield norm("transformer.ln_f", width)
        yield head("lm_head", width, self.vocab_size, tied_to=self.tied_to, bias=True)


class GptNeoX(Config):
    vocab_size: Table
    hidden_size: Width
    num_hidden_layers: Count
    num_attention_heads: Heads
    intermediate_size: Width
    max_position_embeddings: Table = 2048
    tie_word_embeddings: Flag = False
    attention_bias: Flag = True

    def contradictions(self) -> Iterator[str]:
        yield from uneven(self.num_attention_heads, self.hidden_size, "hidden_size", "num_attention_heads")

    def layers(self) -> Iterator[Layer]:
        words, width, inner, bias = "gpt_neox.embed_in", self.hidden_size, self.intermediate_size, self.attention_bias
        yield table(words, self.vocab_size, width)
        block = [
            norm("input_layernorm", width),
            norm("post_attention_layernorm", width),
            linear("attention.query_key_value", width, 3 * width, bias=bias, parts=(width, width, width)),
            linear("attention.dense", width, width, bias=bias),
            linear("mlp.dense_h_to_4h", width, inner, bias=True),
            linear("mlp.dense_4h_to_h", inner, width, bias=True),
        ]
        yield from repeated("gpt_neox.layers", self.num_hidden_layers, block)
        yield norm("gpt_neox.final_layer_norm", width)
        yield head("lm_head", width, self.vocab_size, tied_to=words if self.tie_word_embeddings else None)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        return (
            plain_blocks(self.num_hidden_layers, self.hidden_size, self.num_attention_heads, self.intermediate_size),
        )


class Opt(Config):
    vocab_size: Table
    hidden_size: Width
    num_hidden_layers: Count
    num_attention_heads: Heads
    ffn_dim: Width
    max_position_embeddings: Table
    word_embed_proj_dim: Width | None = None
    do_layer_norm_before: Flag = True
    without_final_norm: Flag = Field(False, alias="_remove_final_layer_norm")
    enable_bias: Flag = True
    layer_norm_elementwise_affine: Flag = True
    tie_word_embeddings: Flag = True

    def contradictions(self) -> Iterator[str]:
        yield from uneven(self.num_attention_heads, self.hidden_size, "hidden_size", "num_attention_heads")

    def layers(self) -> Iterator[Layer]:
        words, width = "model.decoder.embed_tokens", self.hidden_size
        narrow = self.word_embed_proj_dim or width
        yield table(words, self.vocab_size, narrow)
        yield other("model.decoder.embed_positions", (self.max_position_embeddings + POSITIONS_BEFORE) * width)
        if narrow != width:
            yield linear("model.decoder.project_out", width, narrow)
            yield linear("model.decoder.project_in", narrow, width)
        if self.do_layer_norm_before and not self.without_final_norm:
            yield self.norm("model.decoder.final_layer_norm")
        yield from repeated("model.decoder.layers", self.num_hidden_layers, self.block())
        yield head("lm_head", narrow, self.vocab_size, tied_to=words if self.tie_word_embeddings else None)

    def block(self) -> Iterator[Layer]:
        width, bias = self.hidden_size, self.enable_bias
        for name in ("k", "v", "q", "out"):
            yield linear(f"self_attn.{name}_proj", width, width, bias=bias)
        yield self.norm("self_attn_layer_norm")
        yield linear("fc1", width, self.ffn_dim, bias=bias)
        yield linear("fc2", self.ffn_dim, width, bias=bias)
        yield self.norm("final_layer_norm")

    def norm(self, path: str) -> Layer:
        return other(path, 2 * self.hidden_size if self.layer_norm_elementwise_affine else 0)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        return (plain_blocks(self.num_hidden_layers, self.hidden_size, self.num_attention_heads, self.ffn_dim),)


def plain_blocks(count: int, width: int, heads: int, inner: int, *, causal: bool = True) -> Blocks:
    return Blocks(count, width, heads, heads, width // heads, inner, gated=False, causal=causal)


GPT_LIKE: dict[str, type[Config]] = {"gpt2": Gpt2, "gptj": GptJ, "gpt_neox": GptNeoX, "opt": Opt}
