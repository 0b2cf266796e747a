"""Encoders of BERT's form, without a task's head.

    encoder.layer.N.attention.self.{query,key,value}        (DeBERTa-v2: {query,key,value}_proj)
    encoder.layer.N.attention.output.dense    encoder.layer.N.intermediate.dense    encoder.layer.N.output.dense

BERT and RoBERTa have a pooler, which is a linear layer like the others. DeBERTa-v2 and -v3 have none; they have a table
of relative positions, projections of it where it does not share those of the words, and some a convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from rankwise.planning.architectures.config import Config, Count, Flag, Heads, Table, Width, uneven
from rankwise.planning.architectures.gpt import plain_blocks
from rankwise.planning.architectures.parts import linear, norm, other, repeated, table
from rankwise.planning.shape import Blocks, Layer


class Encoder(Config):
    vocab_size: Table
    hidden_size: Width
    num_hidden_layers: Count
    num_attention_heads: Heads
    intermediate_size: Width
    max_position_embeddings: Table
    type_vocab_size: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 2

    made_by: ClassVar[str] = "AutoModel"
    head: ClassVar[str | None] = None

    def contradictions(self) -> Iterator[str]:
        yield from uneven(self.num_attention_heads, self.hidden_size, "hidden_size", "num_attention_heads")

    def block(self, suffix: str = "", more: tuple[str, ...] = ()) -> Iterator[Layer]:
        width, inner = self.hidden_size, self.intermediate_size
        for name in (*(f"{name}{suffix}" for name in ("query", "key", "value")), *more):
            yield linear(f"attention.self.{name}", width, width, bias=True)
        yield linear("attention.output.dense", width, width, bias=True)
        yield norm("attention.output.LayerNorm", width)
        yield linear("intermediate.dense", width, inner, bias=True)
        yield linear("output.dense", inner, width, bias=True)
        yield norm("output.LayerNorm", width)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        width, inner = self.hidden_size, self.intermediate_size
        return (plain_blocks(self.num_hidden_layers, width, self.num_attention_heads, inner, causal=False),)


class Bert(Encoder):
    def embeddings(self) -> Iterator[Layer]:
        width = self.hidden_size
        yield table("embeddings.word_embeddings", self.vocab_size, width)
        yield table("embeddings.position_embeddings", self.max_position_embeddings, width)
        yield table("embeddings.token_type_embeddings", self.type_vocab_size, width)
        yield norm("embeddings.LayerNorm", width)

    def layers(self) -> Iterator[Layer]:
        yield from self.embeddings()
        yield from repeated("encoder.layer", self.num_hidden_layers, self.block())
        yield linear("pooler.dense", self.hidden_size, self.hidden_size, bias=True)


class Roberta(Bert):
    """Its positions begin after the padding's, so two of them are never used."""

    def embeddings(self) -> Iterator[Layer]:
        words, positions, types, last = super().embeddings()
        yield from (words, types, last, positions)


class DebertaV2(Encoder):
    type_vocab_size: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 0
    embedding_size: Width | None = None
    attention_head_size: Width | None = None
    relative_attention: Flag = False
    max_relative_positions: Annotated[int, Field(ge=-1, le=100_000_000, strict=True)] = -1
    position_buckets: Annotated[int, Field(ge=-1, le=100_000_000, strict=True)] = -1
    position_biased_input: Flag = True
    pos_att_type: str | list[str] | None = None
    share_att_key: Flag = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: Annotated[int, Field(ge=0, le=1_000, strict=True)] = 0
    conv_groups: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from uneven(self.conv_groups, self.hidden_size, "hidden_size", "conv_groups")
        if self.attention_head_size not in (None, self.hidden_size // self.num_attention_heads):
            yield f'"attention_head_size" is {self.attention_head_size}, and the heads do not make up "hidden_size"'

    def layers(self) -> Iterator[Layer]:
        width = self.hidden_size
        yield from self.embeddings()
        yield from repeated("encoder.layer", self.num_hidden_layers, self.block("_proj", self.of_positions()))
        if self.relative_attention:
            yield table("encoder.rel_embeddings", 2 * self.distances, width)
        if "layer_norm" in _listed(self.norm_rel_ebd):
            yield norm("encoder.LayerNorm", width)
        if self.conv_kernel_size:
            yield other("encoder.conv.conv", width * (width // self.conv_groups * self.conv_kernel_size + 1))
            yield norm("encoder.conv.LayerNorm", width)

    def embeddings(self) -> Iterator[Layer]:
        width, narrow = self.hidden_size, self.embedding_size or self.hidden_size
        yield table("embeddings.word_embeddings", self.vocab_size, narrow)
        if self.position_biased_input:
            yield table("embeddings.position_embeddings", self.max_position_embeddings, narrow)
        if self.type_vocab_size:
            yield table("embeddings.token_type_embeddings", self.type_vocab_size, narrow)
        if narrow != width:
            yield linear("embeddings.embed_proj", narrow, width)
        yield norm("embeddings.LayerNorm", width)

    def of_positions(self) -> tuple[str, ...]:
        """Projections of the relative positions."""
        if not self.relative_attention or self.share_att_key:
            return ()
        kinds = _listed(self.pos_att_type or "") if not isinstance(self.pos_att_type, list) else self.pos_att_type
        named = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
        return tuple(name for kind, name in named.items() if kind in kinds)

    @property
    def distances(self) -> int:
        if self.position_buckets > 0:
            return self.position_buckets
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.lower().split("|")]


BERT_LIKE: dict[str, type[Config]] = {
    "bert": Bert, "roberta": Roberta, "xlm-roberta": Roberta, "deberta-v2": DebertaV2,
}  # fmt: skip
