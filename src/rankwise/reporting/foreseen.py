"""The forecast of a run compared with what it took."""

from __future__ import annotations

from typing import Any

from rankwise.reporting.document import paragraph, table
from rankwise.reporting.markup import Content, Markup, element
from rankwise.reporting.quantities import duration, size
from rankwise.runs.manifest import Forecasted, Manifest


def foreseen(manifest: Manifest) -> dict[str, Any] | None:
    """Pairs of forecast and fact, and by what share the forecast was off; None where there was no forecast. What a card
    held is not measured."""
    forecast, results = manifest.forecast, manifest.results
    if forecast is None or results is None:
        return None
    pairs = {
        "trainable_parameters": (forecast.trainable_parameters, results.trainable_parameters),
        "adapter_bytes": (forecast.adapter_bytes, results.adapter_bytes),
        "steps": (forecast.steps, results.steps),
        "peak_bytes": (forecast.peak_bytes, results.peak_rss_bytes if manifest.base_model.device == "cpu" else None),
        "seconds": (forecast.seconds, results.train_seconds),
    }
    return {
        name: _pair(expected, actual)
        for name, (expected, actual) in pairs.items()
        if expected is not None and actual is not None
    }


def _pair(expected: float, actual: float) -> dict[str, float | None]:
    return {"forecast": expected, "fact": actual, "off": expected / actual - 1 if actual else None}


LABELS = {
    "trainable_parameters": "trainable parameters", "adapter_bytes": "saved file size", "steps": "steps",
    "peak_bytes": "peak memory", "seconds": "time",
}  # fmt: skip


def foreseen_table(manifest: Manifest) -> Markup:
    pairs, forecast = foreseen(manifest), manifest.forecast
    if not pairs or forecast is None:
        return Markup("")
    rows: list[list[Content]] = [
        [LABELS[name], _amount(name, pair["forecast"]) + _between(name, forecast), _amount(name, pair["fact"]),
         _off(pair["off"])]
        for name, pair in pairs.items()
    ]  # fmt: skip
    return element(
        "aside",
        element("h3", "Forecast and actual values"),
        paragraph(f"The forecast of `rankwise plan` before training began, for {forecast.device}."),
        table(("quantity", "forecast", "actual", "error"), rows, words=(0,), label="forecast and actual values"),
    )


def _amount(name: str, value: float | None) -> str:
    assert value is not None, "pairs have both"
    if name == "seconds":
        return duration(value)
    return size(value) if name.endswith("bytes") else f"{value:,.0f}"


def _between(name: str, forecast: Forecasted) -> str:
    low, high = forecast.seconds_low, forecast.seconds_high
    if name != "seconds" or low is None or high is None or low == high:
        return ""
    return f" ({duration(low)} to {duration(high)})"


def _off(share: float | None) -> str:
    return "\u2013" if share is None else f"{share:+.1%}"
