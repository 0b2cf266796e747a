"""What a training cost, in words: the same on a page and on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankwise.reporting.quantities import duration, figure, size


def _count(value: Any) -> str:
    return f"{value:,.0f}"


COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "trainable_parameters": ("learned parameters", _count),
    "adapter_bytes": ("saved", size),
    "steps": ("steps", _count),
    "train_seconds": ("time", duration),
    "tokens_per_second": ("tokens a second", _count),
    "peak_rss_bytes": ("peak memory", size),
    "loss": ("loss at the end", figure),
    "held_out_loss_after": ("held-out loss", figure),
}
"""By the field of the results: what it is called, and how its value is written."""


def cost_text(name: str, value: Any) -> str:
    return "not measured" if value is None else COSTS[name][1](value)
