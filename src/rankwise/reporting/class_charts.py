"""Charts of a classifier's calibration: how often it is right at each probability, and how often it gives it."""

from __future__ import annotations

from rankwise.reporting.figures import Panel, Sheet, drawn
from rankwise.reporting.markup import Markup, joined
from rankwise.reporting.quantities import share
from rankwise.runs.measured import ClassDetails

HEIGHT, BAR = 260, 13
UNDER = "probability of the predicted class"


def calibration_charts(name: str, details: ClassDetails) -> Markup:
    """Draw two small charts that stand side by side."""
    bins = details.calibration
    described = "; ".join(f"{share(one.right.value, 1)} right at {share(one.confidence, 1)}" for one in bins)
    counted = "; ".join(f"{one.rows:,} from {share(one.low, 1)} to {share(one.high, 1)}" for one in bins)

    def reliability(sheet: Sheet) -> None:
        panel = _panel(sheet, "share that is right")
        panel.upwards(0, 1)
        panel.line((0, 1), (0, 1), "quiet", width=1.2, dashed=True)
        for one in bins:
            panel.span((one.confidence, one.confidence), (one.right.low, one.right.high), "tuned")
        panel.dots([one.confidence for one in bins], [one.right.value for one in bins], "tuned", size=7)

    def histogram(sheet: Sheet) -> None:
        panel = _panel(sheet, "rows")
        panel.upwards(0, max((one.rows for one in bins), default=1) * 1.05)
        for one in bins:
            middle = (one.low + one.high) / 2
            panel.span((middle, middle), (0, one.rows), "tuned", width=BAR)

    return joined(
        drawn(f"{name}-reliability", described, reliability, HEIGHT, "narrow"),
        drawn(f"{name}-rows", counted, histogram, HEIGHT, "narrow"),
    )


def _panel(sheet: Sheet, heading: str) -> Panel:
    panel = sheet.panel(52, 34, 16, 40)
    panel.across(0, 1, whole=False, under=UNDER)
    panel.headed(heading)
    return panel
