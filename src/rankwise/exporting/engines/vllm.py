"""vLLM, which lays adapters of one rank and alpha over a base that it serves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rankwise.exporting.engines.engine import Engine, adalora, convolutions, heads, magnitudes

if TYPE_CHECKING:
    from rankwise.adapters.weights import AdapterWeights

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of the flag --max-lora-rank."""


def _too_large(weights: AdapterWeights) -> str | None:
    return f"knows ranks up to {RANKS[-1]}, and this is {weights.rank}" if weights.rank > RANKS[-1] else None


ENGINE = Engine(
    "vLLM", "0.33", "vllm/lora/peft_helper.py, lora_model.py", "patterns",
    (adalora, magnitudes, partial(heads, does="refuses", allowed=("classifier", "score")), _too_large,
     partial(convolutions, does="has no layer for")),
    evidence="notes",
    uses={"portable": "vllm serve BASE --enable-lora --lora-modules mine=FOLDER --max-lora-rank RANK"},
    aliases={"vllm": "portable"},
)  # fmt: skip
