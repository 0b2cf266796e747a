"""Encoders of images, without a task's head: ViT and DINOv2.

    ViT       layers.N.attention.{q,k,v,o}_proj           layers.N.mlp.{fc1,fc2}           pooler.dense
    DINOv2    encoder.layer.N.attention.{q,k,v,o}_proj    encoder.layer.N.mlp.{fc1,fc2}

The image is cut into patches by a convolution. What stands for the whole image, for a hidden patch and for a place
are single vectors, which no adapter is laid over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from rankwise.planning.architectures.config import Config, Count, Flag, Heads, Width, uneven
from rankwise.planning.architectures.parts import conv2d, linear, norm, other, repeated
from rankwise.planning.shape import Blocks, Layer

Pixels = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Size = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]


class Vision(Config):
    hidden_size: Width
    num_hidden_layers: Count
    num_attention_heads: Heads
    image_size: Size
    patch_size: Size
    num_channels: Pixels = 3
    head_dim: Width | None = None
    qkv_bias: Flag = True

    made_by: ClassVar[str] = "AutoModel"
    head: ClassVar[str | None] = None

    def contradictions(self) -> Iterator[str]:
        if self.head_dim is None:
            yield from uneven(self.num_attention_heads, self.hidden_size, "hidden_size", "num_attention_heads")
        if any(patch > image for patch, image in zip(_pair(self.patch_size), _pair(self.image_size), strict=True)):
            yield f'"patch_size" is {self.patch_size} and "image_size" {self.image_size}, so an image has no patch'

    @property
    def size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context(self) -> int:
        """Patches, and one more for the whole image."""
        (height, width), (down, across) = _pair(self.image_size), _pair(self.patch_size)
        return (height // down) * (width // across) + 1

    def embeddings(self, single: int) -> Iterator[Layer]:
        """`single` vectors, beside one for each place."""
        yield other("embeddings", (single + self.context) * self.hidden_size)
        kernel = _pair(self.patch_size)
        yield conv2d("embeddings.patch_embeddings.projection", self.num_channels, self.hidden_size, kernel)

    def attention(self) -> Iterator[Layer]:
        width, heads = self.hidden_size, self.num_attention_heads * self.size
        for name in "qkv":
            yield linear(f"attention.{name}_proj", width, heads, bias=self.qkv_bias)
        yield linear("attention.o_proj", heads, width, bias=True)

    def blocks(self, inner: int, *, gated: bool = False) -> tuple[Blocks, ...]:
        heads, size = self.num_attention_heads, self.size
        return (Blocks(self.num_hidden_layers, self.hidden_size, heads, heads, size, inner, gated=gated, causal=False),)


class Vit(Vision):
    intermediate_size: Width
    pooler_output_size: Width | None = None

    def layers(self) -> Iterator[Layer]:
        width, inner = self.hidden_size, self.intermediate_size
        yield from self.embeddings(1)
        block = [
            *self.attention(),
            norm("layernorm_before", width),
            norm("layernorm_after", width),
            linear("mlp.fc1", width, inner, bias=True),
            linear("mlp.fc2", inner, width, bias=True),
        ]
        yield from repeated("layers", self.num_hidden_layers, block)
        yield norm("layernorm", width)
        yield linear("pooler.dense", width, self.pooler_output_size or width, bias=True)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        return self.blocks(self.intermediate_size)


class Dinov2(Vision):
    mlp_ratio: Annotated[int, Field(ge=1, le=1_000, strict=True)] = 4
    use_swiglu_ffn: Flag = False
    use_mask_token: Flag = True

    @property
    def inner(self) -> int:
        """A gated layer has two thirds of the width, rounded up to a multiple of eight."""
        whole = self.hidden_size * self.mlp_ratio
        return (int(whole * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else whole

    def layers(self) -> Iterator[Layer]:
        width = self.hidden_size
        yield from self.embeddings(2 if self.use_mask_token else 1)
        block = [
            norm("norm1", width),
            *self.attention(),
            other("layer_scale1", width),
            norm("norm2", width),
            *self.feed_forward(),
            other("layer_scale2", width),
        ]
        yield from repeated("encoder.layer", self.num_hidden_layers, block)
        yield norm("layernorm", width)

    def feed_forward(self) -> Iterator[Layer]:
        for name in ("gate_proj", "up_proj") if self.use_swiglu_ffn else ("fc1",):
            yield linear(f"mlp.{name}", self.hidden_size, self.inner, bias=True)
        yield linear(f"mlp.{'down_proj' if self.use_swiglu_ffn else 'fc2'}", self.inner, self.hidden_size, bias=True)

    @property
    def stacks(self) -> tuple[Blocks, ...]:
        return self.blocks(self.inner, gated=self.use_swiglu_ffn)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


VISION: dict[str, type[Config]] = {"vit": Vit, "dinov2": Dinov2}
