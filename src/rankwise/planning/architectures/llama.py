"""Decoders of Llama's form: gated layers without biases, norms of one vector, keys and values with fewer heads.

    model.layers.N.self_attn.{q,k,v,o}_proj   model.layers.N.mlp.{gate,up,down}_proj   lm_head

The others differ in biases, in norms, in the head's size where the width does not say it, and Phi-3 in having q, k and
v, and gate and up, in one layer each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rankwise.planning.architectures.config import Config, Count, Flag, Heads, Table, Width, uneven
from rankwise.planning.architectures.parts import head, linear, norm, other, repeated, table
from rankwise.planning.shape import Blocks, Layer


class LlamaLike(Config):
    vocab_size: Table
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    max_position_embeddings: Table = 2048
    tie_word_embeddings: Flag = False

    norms: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: ClassVar[bool] = False
    norms_of_heads: ClassVar[bool] = False
    divided: ClassVar[bool] = False
    """Whether the heads must divide the width even where their size is given."""
    scaled_table: ClassVar[bool] = False
    """Embeddings of a class of its own, which no adapter is laid over."""

    def contradictions(self) -> Iterator[str]:
        if self.head_dim is None or self.divided:
            yield from uneven(self.num_attention_heads, self.hidden_size, "hidden_size", "num_attention_heads")
        yield from uneven(self.shared, self.num_attention_heads, "num_attention_heads", "num_key_value_heads")

    @property
    def shared(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Of q, k and v; of o; and of the feed-forward layers."""
        attention = getattr(self, "attention_bias", False)
        return attention, attention, getattr(self, "mlp_bias", False)

    def layers(self) -> Iterator[Layer]:
        words, rows, width = "model.embed_tokens", self.vocab_size, self.hidden_size
        yield other(words, rows * width) if self.scaled_table else table(words, rows, width)
        block = [*self.attention(), *self.feed_forward(), *self.block_norms()]
        yield from repeated("model.layers", self.num_hidden_layers, block)
        yield norm("model.norm", width, bias=self.norm_bias)
        yield head("lm_head", width, rows, tied_to=words if self.tie_word_embeddings else None)

    def attention(self) -> Iterator[Layer]:
        width, queries, keys = self.hidden_size, self.num_attention_heads * self.size, self.shared * self.size
        into, out, _ = self.biases
        yield linear("self_attn.q_proj", width, queries, bias=into)
        yield linear("self_attn.k_proj", width, keys, bias=into)
        yield linear("self_attn.v_proj", width, keys, bias=into)
        yield linear("self_attn.o_proj", queries, width, bias=out)
        if self.norms_of_heads:
            yield norm("self_attn.q_norm", self.size, bias=False)
            yield norm("self_attn.k_norm", self.size, bias=False)

    def feed_forward(self) -> Iterator[Layer]:
        width, inner, bias = self.hidden_size, self.intermediate_size, self.biases[2]
        yield linear("mlp.gate_proj", width, inner, bias=bias)
        yield linear("mlp.up_proj", width, inner, bias=bias)
        yield linear("mlp.down_proj", inner, width, bias=bias)

    def block_norms(self) -> Iterator[Layer]:
        for name in self.norms:
            yield norm(name, self.hidden_size, bias=self.norm_bias)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        """A window counts where all blocks have it, as those of Mistral and Phi-3 do."""
        return (
            Blocks(
                self.num_hidden_layers, self.hidden_size, self.num_attention_heads, self.shared, self.size,
                self.intermediate_size, gated=True, causal=True, window=getattr(self, "sliding_window", None),
            ),
        )  # fmt: skip


class Llama(LlamaLike):
    attention_bias: Flag = False
    mlp_bias: Flag = False

    divided: ClassVar[bool] = True


class Mistral(LlamaLike):
    num_key_value_heads: Heads | None = 8
    max_position_embeddings: Table = 131072
    sliding_window: Table | None = 4096


class SmolLM3(LlamaLike):
    num_key_value_heads: Heads | None = 4
    max_position_embeddings: Table = 32768
    tie_word_embeddings: Flag = True
    attention_bias: Flag = False
    mlp_bias: Flag = False


class Qwen2(LlamaLike):
    num_key_value_heads: Heads | None = 32
    max_position_embeddings: Table = 32768

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return True, False, False


class Qwen3(LlamaLike):
    num_key_value_heads: Heads | None = 32
    head_dim: Width | None = 128
    max_position_embeddings: Table = 32768
    attention_bias: Flag = False

    norms_of_heads: ClassVar[bool] = True


class Gemma(LlamaLike):
    num_key_value_heads: Heads | None = 16
    head_dim: Width | None = 256
    max_position_embeddings: Table = 8192
    tie_word_embeddings: Flag = True
    attention_bias: Flag = False

    divided: ClassVar[bool] = True
    scaled_table: ClassVar[bool] = True


class Gemma2(Gemma):
    num_key_value_heads: Heads | None = 4

    norms: ClassVar[tuple[str, ...]] = (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    )  # fmt: skip


class Gemma3(Gemma2):
    max_position_embeddings: Table = 131072

    norms_of_heads: ClassVar[bool] = True


class StableLm(LlamaLike):
    num_key_value_heads: Heads | None = 32
    max_position_embeddings: Table = 4096
    use_qkv_bias: Flag = False
    qk_layernorm: Flag = False
    use_parallel_residual: Flag = False

    divided: ClassVar[bool] = True
    norm_bias: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """Whatever head_dim says."""
        return self.hidden_size // self.num_attention_heads

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return self.use_qkv_bias, False, False

    def attention(self) -> Iterator[Layer]:
        """Its norms of heads are one for each head."""
        yield from super().attention()
        if self.qk_layernorm:
            yield other("self_attn.q_layernorm", self.hidden_size)
            yield other("self_attn.k_layernorm", self.shared * self.size)

    def block_norms(self) -> Iterator[Layer]:
        yield from list(super().block_norms())[: 1 if self.use_parallel_residual else 2]


class Phi3(LlamaLike):
    max_position_embeddings: Table = 4096
    sliding_window: Table | None = None

    def attention(self) -> Iterator[Layer]:
        queries, keys = self.num_attention_heads * self.size, self.shared * self.size
        parts = (queries, keys, keys)
        yield linear("self_attn.o_proj", queries, self.hidden_size)
        yield linear("self_attn.qkv_proj", self.hidden_size, sum(parts), parts=parts)

    def feed_forward(self) -> Iterator[Layer]:
        yield linear("mlp.gate_up_proj", self.hidden_size, 2 * self.intermediate_size)
        yield linear("mlp.down_proj", self.intermediate_size, self.hidden_size)


LLAMA_LIKE: dict[str, type[Config]] = {
    "llama": Llama, "mistral": Mistral, "smollm3": SmolLM3, "qwen2": Qwen2, "qwen3": Qwen3, "gemma": Gemma,
    "gemma2": Gemma2, "gemma3_text": Gemma3, "stablelm": StableLm, "phi3": Phi3,
}  # fmt: skip
