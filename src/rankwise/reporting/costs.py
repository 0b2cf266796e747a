"""Costs of a training run as text, shared by reports and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankwise.reporting.quantities import duration, figure, share, size


def _count(value: Any) -> str:
    return f"{value:,.0f}"


COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "trainable_parameters": ("trainable parameters", _count),
    "adapter_bytes": ("saved file size", size),
    "steps": ("steps", _count),
    "train_seconds": ("time", duration),
    "tokens_per_second": ("tokens per second", _count),
    "images_per_second": ("images per second", lambda value: f"{value:,.1f}"),
    "peak_rss_bytes": ("peak memory", size),
    "loss": ("final loss", figure),
    "validation_loss_after": ("validation loss", figure),
    "validation_accuracy_after": ("validation accuracy", lambda value: share(value, 1)),
}
"""Label and format of each field of the results."""
OPTIONAL = ("images_per_second", "validation_accuracy_after")
"""Fields that are shown only where a run has them."""


def cost_text(name: str, value: Any) -> str:
    return "not measured" if value is None else COSTS[name][1](value)
