"""Section on the spans of a token classifier: figures of each type, and texts with wrong spans."""

from __future__ import annotations

from rankwise.reporting.classes import cells
from rankwise.reporting.document import Section, folded, table
from rankwise.reporting.markup import Content, Markup, element
from rankwise.reporting.quantities import plural
from rankwise.runs.class_text import weakest
from rankwise.runs.evaluations import Evaluation
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.span_details import SUMMARISED, SpanDetails, WrongSpans

HEADS = ("type", "true spans", "predicted", "precision", "recall", "F1", "")
OPEN_ROWS = 8


def spans_section(run: RunSnapshot) -> Section | None:
    parts = [(task, one, details) for task, one in run.evaluations.items() if (details := one.tuned.spans) is not None]
    if not parts:
        return None
    return Section(
        "spans", "Spans", {task: details.summary() for task, _, details in parts},
        [block for task, one, details in parts for block in _blocks(task, one, details)],
        about="A span is right where both of its ends and its type are. Precision is the share of the predicted spans "
        "that are right, recall is the share of the true spans that are predicted, and F1 is their harmonic mean. "
        "Intervals are 95 % intervals, over texts.",
    )  # fmt: skip


def _blocks(task: str, evaluation: Evaluation, details: SpanDetails) -> list[Markup]:
    return [
        element("h3", f"{task}, {plural(evaluation.n, 'text')} of {evaluation.data}"),
        table(HEADS, list(map(cells, weakest(details.types))), label="spans", lead=1),
        *_wrong(details),
    ]


def _wrong(details: SpanDetails) -> list[Markup]:
    if not details.wrong:
        return []
    shown = details.wrong[:SUMMARISED]
    heading = f"Texts with wrong or missed spans: {details.wrong_texts:,} of {details.texts:,}"
    if len(shown) < details.wrong_texts:
        heading += f"; {len(shown)} of them are shown"
    first, rest = shown[:OPEN_ROWS], shown[OPEN_ROWS:]
    more = [folded(f"{len(rest)} more", _table(rest))] if rest else []
    return [element("h3", heading), _table(first), *more]


def _table(rows: list[WrongSpans]) -> Markup:
    lines: list[list[Content]] = [
        [row.name, row.text, ", ".join(row.missed) or "\u2013", ", ".join(row.wrong) or "\u2013"] for row in rows
    ]
    return table(
        ("row", "text", "missed", "predicted in error"), lines, words=(0, 1, 2, 3), label="wrong spans", lead=1
    )
