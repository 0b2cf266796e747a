"""What this processor could do at best: the operations of a step, and the rate at which products are made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

MODEL = os.environ.get("RANKWISE_BENCH_MODEL", "smollm2-135m")
"""What is trained."""


def operations(lengths: list[int], supervised: int, rank: int, shape: Mapping[str, Any] | None = None) -> float:
    """That a step cannot do without: all linear layers forward and to their inputs, causal attention (its backward pass
    two and a half times its forward one), adapters (three times their forward), and the head at supervised tokens,
    twice. Not the gradient of the first block's input, and of the last block's output only what the head gets. `shape`
    is what a model's config.json says, the starter's by default."""
    shape = shape if shape is not None else starter_shape()
    width, layers, sizes, tokens = shape["hidden_size"], shape["num_hidden_layers"], sizes_of(shape), sum(lengths)
    wide, low = [2 * i * o for i, o in sizes], [2 * rank * (i + o) for i, o in sizes]
    block = 2 * sum(wide) + 3 * sum(low)
    q, o, k, v, *fed = range(len(sizes))
    first = sum(wide[at] for at in (q, k, v))
    last = sum(2 * wide[at] + 3 * low[at] for at in (o, *fed))
    attention = sum(3.5 * 2 * length**2 * width * layers for length in lengths)
    head = supervised * 2 * 2 * shape["vocab_size"] * width
    return tokens * (layers * block - first) - (tokens - supervised) * last + attention + head


def sizes_of(shape: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of a block: q, o, k, v, gate, up, down."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    return [(width, width)] * 2 + [(width, narrow)] * 2 + [(width, inner)] * 2 + [(inner, width)]


def starter_shape() -> dict[str, Any]:
    from rankwise.base.sources import find
    from rankwise.config.models import ModelConfig
    from rankwise.runs.records import silent
    from rankwise.system.foreign_json import read_json

    return read_json(find(ModelConfig(name=MODEL), silent).folder / "config.json")


def gemm_rate() -> float:
    """Of the best of some large bfloat16 products, in operations per second."""
    return max(_rate([(size, size, size)]) for size in (1024, 2048, 4096))


def shape_rate(tokens: int, rank: int) -> float:
    """Of the starter's own products over so many tokens, thin ones too, each at its best."""
    sizes = sizes_of(starter_shape())
    wide = [(tokens, i, o) for pair in sizes for i, o in (pair, pair[::-1])]
    thin = [
        size for i, o in sizes
        for size in ((tokens, i, rank), (tokens, rank, o), (tokens, o, rank), (tokens, rank, i), (rank, tokens, i),
                     (o, tokens, rank))
    ]  # fmt: skip
    return _rate(wide + thin)


def _rate(sizes: list[tuple[int, int, int]]) -> float:
    """Of products (m, k) by (k, n)."""
    import torch

    seconds = 0.0
    for m, k, n in sizes:
        x, y = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(k, n, dtype=torch.bfloat16)
        seconds += min(_timed(lambda x=x, y=y: x @ y) for _ in range(8))
    return sum(2 * m * k * n for m, k, n in sizes) / seconds


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
