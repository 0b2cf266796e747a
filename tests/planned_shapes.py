"""Shapes of well-known models, written out by hand from their published config.json files."""

from __future__ import annotations

from typing import Any

from rankwise.planning.shape import Blocks, Layer, ModelShape

SIZE = ("width", "inner", "count", "heads", "key_value_heads", "head_size", "vocabulary", "tied")
SIZES: dict[str, dict[str, Any]] = {
    name: dict(zip(SIZE, size, strict=True))
    for name, size in {
        "smollm2-135m": (576, 1536, 30, 9, 3, 64, 49152, True),
        "llama-2-7b": (4096, 11008, 32, 32, 32, 128, 32000, False),
        "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256, False),
        "qwen2.5-7b": (3584, 18944, 28, 28, 4, 128, 152064, False),
        "tiny": (64, 96, 3, 4, 2, 16, 128, False),
    }.items()
}


def llama(name: str = "tiny", *, causal: bool = True, window: int | None = None, **changed: Any) -> ModelShape:
    size = SIZES[name] | changed
    width, inner, queries = size["width"], size["inner"], size["heads"] * size["head_size"]
    narrow = size["key_value_heads"] * size["head_size"]
    block = {
        "self_attn.q_proj": (width, queries),
        "self_attn.k_proj": (width, narrow),
        "self_attn.v_proj": (width, narrow),
        "self_attn.o_proj": (queries, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    layers = [Layer("model.embed_tokens", "embedding", size["vocabulary"], width)]
    for number in range(size["count"]):
        layers += [Layer(f"model.layers.{number}.{path}", "linear", *ends) for path, ends in block.items()]
        layers.append(Layer(f"model.layers.{number}.input_layernorm", "other", bias=width))
    shares = "model.embed_tokens" if size["tied"] else None
    layers.append(Layer("lm_head", "linear", width, size["vocabulary"], shares=shares))
    kept = ("count", "width", "heads", "key_value_heads", "head_size", "inner")
    blocks = Blocks(**{key: size[key] for key in kept}, gated=True, causal=causal, window=window)
    return ModelShape(name, "llama", tuple(layers), (blocks,), size["vocabulary"], 4096, "lm_head")


def encoder_decoder(*, count: int = 2, width: int = 32, inner: int = 64) -> ModelShape:
    """In the manner of T5: no gate, and a decoder that looks at the encoder's output in each block."""
    layers = [Layer("shared", "embedding", 100, width)]
    for part, groups in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for number in range(count):
            at = f"{part}.block.{number}.layer"
            for place, group in enumerate(groups):
                layers += [Layer(f"{at}.{place}.{group}.{leaf}", "linear", width, width) for leaf in "qkvo"]
            at = f"{at}.{len(groups)}.DenseReluDense"
            layers += [Layer(f"{at}.wi", "linear", width, inner), Layer(f"{at}.wo", "linear", inner, width)]
    layers.append(Layer("lm_head", "linear", width, 100))
    stacks = tuple(
        Blocks(count, width, 4, 4, width // 4, inner, gated=False, causal=causal) for causal in (False, True)
    )
    return ModelShape("t5", "t5", tuple(layers), stacks, 100, 512, "lm_head")


def image_classifier(*, count: int = 2, width: int = 32, patch: int = 4, classes: int = 10) -> ModelShape:
    layers = [Layer("vit.embeddings.projection", "conv2d", 3 * patch**2, width)]
    for number in range(count):
        at = f"vit.encoder.layer.{number}"
        leaves = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
        layers += [Layer(f"{at}.{leaf}", "linear", width, width) for leaf in leaves]
        layers += [
            Layer(f"{at}.fc1", "linear", width, 4 * width),
            Layer(f"{at}.fc2", "linear", 4 * width, width),
        ]
    layers.append(Layer("classifier", "linear", width, classes))
    blocks = Blocks(count, width, 4, 4, width // 4, 4 * width, gated=False, causal=False)
    return ModelShape("vit", "vit", tuple(layers), (blocks,), 0, None, "classifier")


def adapted(shape: ModelShape, rank: int, *leaves: str) -> dict[str, int]:
    """Of all linear layers but the head, or of those whose names end so."""
    return {
        layer.path: rank
        for layer in shape.layers
        if layer.kind == "linear" and layer.path != shape.head and (not leaves or layer.path.endswith(leaves))
    }
