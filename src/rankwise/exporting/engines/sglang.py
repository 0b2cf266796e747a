"""SGLang, whose buffers have r rows for each layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rankwise.exporting.engines.engine import Engine, adalora, convolutions, heads, magnitudes

if TYPE_CHECKING:
    from rankwise.adapters.weights import AdapterWeights


def _uneven(weights: AdapterWeights) -> str | None:
    rank = weights.settings.get("r", weights.rank)
    other = {path: part.rank for path, part in weights.factors.items() if part.rank not in (0, rank)}
    path = next(iter(other), None)
    return None if path is None else f'needs rank {rank} in every layer, and "{path}" has rank {other[path]}'


def _without_value(weights: AdapterWeights) -> str | None:
    """Query, key and value are stacked."""
    for path in weights.factors:
        outer, _, leaf = path.rpartition(".")
        if leaf in ("q_proj", "k_proj") and f"{outer}.v_proj" not in weights.factors:
            return f'needs factors of v_proj beside those of {leaf}, and "{outer}.v_proj" has none'
    return None


ENGINE = Engine(
    "SGLang", "0.5.23", "python/sglang/srt/lora/lora.py, mem_pool.py", "top",
    (adalora, magnitudes, partial(heads, does="does not load"), _uneven, _without_value,
     partial(convolutions, does="has no layer for")),
    evidence="notes",
)  # fmt: skip
