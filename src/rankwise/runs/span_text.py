"""Details of a token classifier's evaluation as lines of text."""

from __future__ import annotations

from rankwise.errors import one_line, some
from rankwise.runs.class_text import figure_lines, weakest
from rankwise.runs.span_details import SpanDetails

HEADS = ("span", "true", "precision", "recall", "F1")
MOST_WRONG = 3


def span_lines(details: SpanDetails) -> list[str]:
    """List each type of span, or of many types those with the lowest F1, and then the first wrong texts."""
    lines = figure_lines(HEADS, weakest(details.types))
    if not details.types:
        lines = ["no text has a span, true or predicted"]
    lines.append(f"texts with a wrong or missed span: {details.wrong_texts:,} of {details.texts:,}")
    for one in details.wrong[:MOST_WRONG]:
        missed, wrong = (some(map(one_line, spans), 4) or "none" for spans in (one.missed, one.wrong))
        lines.append(f"  {one_line(one.name)}: missed {missed}; wrong {wrong}")
    return lines
