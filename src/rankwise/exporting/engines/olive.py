"""Olive, whose converter of adapters scales no embedding."""

from __future__ import annotations

from functools import partial

from rankwise.exporting.engines.engine import Engine, adalora, heads, magnitudes

ENGINE = Engine(
    "Olive", "0.11.0.dev0 (ee6f40f)", "olive/cli/convert_adapters.py", "top-rslora-linear",
    (adalora, magnitudes, partial(heads, does="has no place for")),
)  # fmt: skip
