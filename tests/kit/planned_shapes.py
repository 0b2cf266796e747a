"""Shapes of well-known models, written out by hand from their published config.json files."""

from __future__ import annotations

from typing import Any

from rankwise.config.modules import Layer
from rankwise.planning.shape import Blocks, ModelShape

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
        "self_attn.q_proj": (width, queries, 0),
        "self_attn.k_proj": (width, narrow, 0),
        "self_attn.v_proj": (width, narrow, 0),
        "self_attn.o_proj": (queries, width, 1),
        "mlp.gate_proj": (width, inner, 2),
        "mlp.up_proj": (width, inner, 2),
        "mlp.down_proj": (inner, width, 3),
    }
    layers = [Layer("model.embed_tokens", "embedding", size["vocabulary"], width, stage=-1)]
    for number in range(size["count"]):
        layers += [
            Layer(f"model.layers.{number}.{path}", "linear", inputs, outputs, stage=stage)
            for path, (inputs, outputs, stage) in block.items()
        ]
        layers.append(Layer(f"model.layers.{number}.input_layernorm", "other", bias=width))
    shares = "model.embed_tokens" if size["tied"] else None
    layers.append(Layer("lm_head", "linear", width, size["vocabulary"], shares=shares, stage=0))
    blocks = Blocks(size["count"], width, queries, causal=causal, window=window)
    return ModelShape(
        name, "llama", "AutoModelForCausalLM", tuple(layers), (blocks,), size["vocabulary"], 4096, "lm_head"
    )


def adapted(shape: ModelShape, rank: int, *leaves: str) -> dict[str, int]:
    """Of all linear layers but the head, or of those whose names end so."""
    return {
        layer.path: rank
        for layer in shape.layers
        if layer.kind == "linear" and layer.path != shape.head and (not leaves or layer.path.endswith(leaves))
    }
