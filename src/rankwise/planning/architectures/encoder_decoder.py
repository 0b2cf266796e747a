"""Models that read with one stack and write with another: T5 and BART, with the head that writes.

    T5      {encoder,decoder}.block.N.layer.M.{SelfAttention,EncDecAttention}.{q,k,v,o}   ....DenseReluDense.{wi,wo}
    BART    model.{encoder,decoder}.layers.N.{self_attn,encoder_attn}.{k,v,q,out}_proj    ....{fc1,fc2}

Both stacks and the head read one table of words. The first block of each of T5's stacks holds its relative positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from rankwise.planning.architectures.config import Config, Count, Flag, Heads, Table, Width, uneven
from rankwise.planning.architectures.gpt import POSITIONS_BEFORE, plain_blocks
from rankwise.planning.architectures.parts import head, inside, linear, norm, other, repeated, table
from rankwise.planning.shape import Blocks, Layer


class T5(Config):
    vocab_size: Table
    d_model: Width
    d_kv: Width
    d_ff: Width
    num_layers: Count
    num_decoder_layers: Count | None = None
    num_heads: Heads
    relative_attention_num_buckets: Width = 32
    feed_forward_proj: Annotated[str, Field(pattern=r"^(gated-)?[A-Za-z0-9_]+$")] = "relu"
    is_gated_act: Flag | None = None
    """Decides where it is given, also against `feed_forward_proj`."""

    made_by: ClassVar[str] = "AutoModelForSeq2SeqLM"
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }  # fmt: skip

    @property
    def context(self) -> None:
        """Relative positions have no end."""
        return None

    @property
    def gated(self) -> bool:
        said = self.feed_forward_proj.startswith("gated-")
        return said if self.is_gated_act is None else self.is_gated_act

    @property
    def depths(self) -> dict[str, int]:
        return {"encoder": self.num_layers, "decoder": self.num_decoder_layers or self.num_layers}

    def layers(self) -> Iterator[Layer]:
        yield table("shared", self.vocab_size, self.d_model)
        for stack, depth in self.depths.items():
            yield table(f"{stack}.embed_tokens", self.vocab_size, self.d_model, shares="shared")
            block = list(self.block(crossed=stack == "decoder"))
            positions = table("layer.0.SelfAttention.relative_attention_bias", *self.positions)
            yield from inside(f"{stack}.block.0", [*block[:4], positions, *block[4:]])
            yield from list(repeated(f"{stack}.block", depth, block))[len(block) :]
            yield norm(f"{stack}.final_layer_norm", self.d_model, bias=False)
        yield head("lm_head", self.d_model, self.vocab_size, tied_to="shared")

    @property
    def positions(self) -> tuple[int, int]:
        return self.relative_attention_num_buckets, self.num_heads

    def block(self, *, crossed: bool) -> Iterator[Layer]:
        width, heads = self.d_model, self.num_heads * self.d_kv
        parts = ["SelfAttention", "EncDecAttention"] if crossed else ["SelfAttention"]
        for number, part in enumerate(parts):
            for name in "qkv":
                yield linear(f"layer.{number}.{part}.{name}", width, heads)
            yield linear(f"layer.{number}.{part}.o", heads, width)
            yield norm(f"layer.{number}.layer_norm", width, bias=False)
        last = f"layer.{len(parts)}"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            yield linear(f"{last}.DenseReluDense.{name}", width, self.d_ff)
        yield linear(f"{last}.DenseReluDense.wo", self.d_ff, width)
        yield norm(f"{last}.layer_norm", width, bias=False)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        sizes = (self.d_model, self.num_heads, self.num_heads, self.d_kv, self.d_ff)
        return tuple(
            Blocks(depth, *sizes, gated=self.gated, causal=stack == "decoder") for stack, depth in self.depths.items()
        )


class Bart(Config):
    vocab_size: Table
    d_model: Width
    encoder_layers: Count
    encoder_ffn_dim: Width
    encoder_attention_heads: Heads
    decoder_layers: Count
    decoder_ffn_dim: Width
    decoder_attention_heads: Heads
    max_position_embeddings: Table
    tie_word_embeddings: Flag = True

    made_by: ClassVar[str] = "AutoModelForSeq2SeqLM"
    aliases: ClassVar[dict[str, str]] = {
        "num_attention_heads": "encoder_attention_heads", "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
    }  # fmt: skip

    def contradictions(self) -> Iterator[str]:
        yield from uneven(self.encoder_attention_heads, self.d_model, "d_model", "encoder_attention_heads")
        yield from uneven(self.decoder_attention_heads, self.d_model, "d_model", "decoder_attention_heads")
        if not self.tie_word_embeddings:
            yield '"tie_word_embeddings" is false, and how the tables are held then is not known here'

    def layers(self) -> Iterator[Layer]:
        words, width = "model.shared", self.d_model
        yield other(words, self.vocab_size * width)
        for stack, depth, inner in (
            ("encoder", self.encoder_layers, self.encoder_ffn_dim),
            ("decoder", self.decoder_layers, self.decoder_ffn_dim),
        ):
            yield replace(other(f"model.{stack}.embed_tokens", 0), shares=words)
            rows = self.max_position_embeddings + POSITIONS_BEFORE
            yield other(f"model.{stack}.embed_positions", rows * width)
            block = self.block(inner, crossed=stack == "decoder")
            yield from repeated(f"model.{stack}.layers", depth, block)
            yield norm(f"model.{stack}.layernorm_embedding", width)
        yield head("lm_head", width, self.vocab_size, tied_to=words)

    def block(self, inner: int, *, crossed: bool) -> Iterator[Layer]:
        width = self.d_model
        for attention in ("self_attn", "encoder_attn") if crossed else ("self_attn",):
            for name in ("k", "v", "q", "out"):
                yield linear(f"{attention}.{name}_proj", width, width, bias=True)
            yield norm(f"{attention}_layer_norm", width)
        yield linear("fc1", width, inner, bias=True)
        yield linear("fc2", inner, width, bias=True)
        yield norm("final_layer_norm", width)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        width = self.d_model
        return (
            plain_blocks(self.encoder_layers, width, self.encoder_attention_heads, self.encoder_ffn_dim, causal=False),
            plain_blocks(self.decoder_layers, width, self.decoder_attention_heads, self.decoder_ffn_dim),
        )


ENCODER_DECODERS: dict[str, type[Config]] = {"t5": T5, "bart": Bart}
