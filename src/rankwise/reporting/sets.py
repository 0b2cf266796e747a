"""Section on rows with several labels or spans each: figures of each label or type of span, and wrong rows."""

from __future__ import annotations

from rankwise.reporting.classes import cells
from rankwise.reporting.document import Section, folded, table
from rankwise.reporting.markup import Content, Markup, element
from rankwise.reporting.quantities import plural
from rankwise.runs.evaluations import Evaluation
from rankwise.runs.measured import SUMMARISED, SetDetails, WrongSet
from rankwise.runs.score_text import weakest
from rankwise.runs.snapshot import RunSnapshot

OPEN_ROWS = 8
ABOUT = {
    "spans": "A span is right where both of its ends and its type are. ",
    "labels": "A label is predicted where its probability is above one half. ",
}
MEANING = (
    "Precision is the share of the predicted {} that are right, recall is the share of the true {} that are predicted, "
    "and F1 is their harmonic mean. Intervals are 95 % intervals, over rows."
)


def sets_section(run: RunSnapshot) -> Section | None:
    parts = [(task, one, details) for task, one in run.evaluations.items() if (details := one.tuned.sets) is not None]
    if not parts:
        return None
    of = parts[0][2].of
    return Section(
        of, of.capitalize(), {task: details.summary() for task, _, details in parts},
        [block for task, one, details in parts for block in _blocks(task, one, details)],
        about=ABOUT[of] + MEANING.format(of, of),
    )  # fmt: skip


def _blocks(task: str, evaluation: Evaluation, details: SetDetails) -> list[Markup]:
    return [
        element("h3", f"{task}, {plural(evaluation.n, 'row')} of {evaluation.data}"),
        table(
            (details.of.removesuffix("s"), f"true {details.of}", "predicted", "precision", "recall", "F1", ""),
            list(map(cells, weakest(details.types))), label=details.of, lead=1,
        ),
        *_wrong(details),
    ]  # fmt: skip


def _wrong(details: SetDetails) -> list[Markup]:
    if not details.wrong:
        return []
    shown = details.wrong[:SUMMARISED]
    heading = f"Rows with wrong or missed {details.of}: {details.wrong_rows:,} of {details.rows:,}"
    if len(shown) < details.wrong_rows:
        heading += f"; {len(shown)} of them are shown"
    first, rest = shown[:OPEN_ROWS], shown[OPEN_ROWS:]
    more = [folded(f"{len(rest)} more", _table(rest))] if rest else []
    return [element("h3", heading), _table(first), *more]


def _table(rows: list[WrongSet]) -> Markup:
    lines: list[list[Content]] = [
        [row.name, row.text, ", ".join(row.missed) or "\u2013", ", ".join(row.wrong) or "\u2013"] for row in rows
    ]
    return table(("row", "text", "missed", "predicted in error"), lines, words=(0, 1, 2, 3), label="wrong rows", lead=1)
