"""Number formats for reports: enough digits to distinguish values, with their units."""

from __future__ import annotations

import math

from rankwise.runs.measured import Measurement

MINUS = "\u2212"


def figure(value: float, signed: bool = False) -> str:
    """Format a number with three or four digits."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        formatted = f"{value:+.2e}" if signed else f"{value:.2e}"
    else:
        places = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
        formatted = f"{value:+z,.{places}f}" if signed else f"{value:z,.{places}f}"
    return formatted.replace("-", MINUS)


def interval(low: float, high: float, signed: bool = False) -> str:
    return f"{figure(low, signed)} to {figure(high, signed)}"


def with_interval(measurement: Measurement) -> str:
    return within(measurement.value, measurement.low, measurement.high)


def within(value: float, low: float, high: float, signed: bool = False, unit: str = "") -> str:
    """A value with its interval."""
    return f"{figure(value, signed)}{unit} ({interval(low, high, signed)})"


def chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def recorded(value: object) -> str:
    """Format a setting or another recorded value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(value: int | None) -> str:
    return "not counted" if value is None else f"{value:,}"


def size(value: float) -> str:
    """Format a number of bytes."""
    for unit, many in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= many:
            return f"{value / many:,.2f} {unit}" if value < 100 * many else f"{value / many:,.0f} {unit}"
    return f"{value:,.0f} bytes"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def rough_duration(seconds: float) -> str:
    """Format a forecast time, with no more digits than it deserves."""
    for unit, each in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds / each:.1f} {unit}"
    return f"{seconds:.1f} s"


def share(part: float, total: float) -> str:
    """Format a share in percent with three digits."""
    return f"{100 * part / total:.3g} %" if total else "\u2013"


def plural(many: int, singular: str, several: str | None = None) -> str:
    return f"{many:,} {singular if many == 1 else several or singular + 's'}"
