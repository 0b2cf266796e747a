"""Details of an evaluation where a row may have several labels or spans, as lines of text."""

from __future__ import annotations

from rankwise.errors import one_line, some
from rankwise.runs.class_text import figure_lines, weakest
from rankwise.runs.set_details import SetDetails

MOST_WRONG = 3


def set_lines(details: SetDetails) -> list[str]:
    """List each label or type of span, or of many those with the lowest F1, and then the first wrong rows."""
    heads = (details.of.removesuffix("s"), "true", "precision", "recall", "F1")
    lines = figure_lines(heads, weakest(details.types)) if details.types else [f"no row has any {details.of}"]
    lines.append(f"rows with wrong or missed {details.of}: {details.wrong_rows:,} of {details.rows:,}")
    for one in details.wrong[:MOST_WRONG]:
        missed, wrong = (some(map(one_line, names), 4) or "none" for names in (one.missed, one.wrong))
        lines.append(f"  {one_line(one.name)}: missed {missed}; wrong {wrong}")
    return lines
