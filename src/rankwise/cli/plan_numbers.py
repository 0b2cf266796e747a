"""Numbers of a plan as text: sizes, durations and intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwise.reporting.quantities import rough_duration

if TYPE_CHECKING:
    from rankwise.planning.estimate import Estimate


COLUMN = 14


def row_text(name: str, text: str) -> str:
    return f"{name:<{COLUMN}}{' '.join(text.splitlines())}"


def size_text(amount: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount / 1e3:.1f} kB" if amount else "0"


def between_text(estimate: Estimate, form: str) -> str:
    return "" if estimate.exact else f" ({form.format(estimate.low)} to {form.format(estimate.high)})"


def spread_text(estimate: Estimate) -> str:
    return "" if estimate.exact else f" ({rough_duration(estimate.low)} to {rough_duration(estimate.high)})"
