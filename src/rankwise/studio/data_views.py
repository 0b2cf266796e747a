"""What the page shows of rows before a training: their columns, the data report, and a preview with the loss tokens.

The same functions as `rankwise data check` and `rankwise data preview`; what they drop, change or guess is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.commands.columns import Columns, columns_of
from rankwise.errors import RankwiseError
from rankwise.runs.data_report import DataReport, about, lines_of, verdict_of
from rankwise.runs.records import Event, StatusMessage, WarningMessage
from rankwise.studio.forecast import placed
from rankwise.studio.settings_form import READING, Problem, SettingsForm
from rankwise.studio.uploads import FOLDER, with_names

if TYPE_CHECKING:
    from rankwise.commands.data import Shown

LISTED, SHEET = 8, "sheet.png"
MOST_ROWS = 20


@dataclass
class Remarks:
    """Collects the messages of a command."""

    texts: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StatusMessage | WarningMessage):
            self.texts.append(with_names(event.text))


@dataclass(frozen=True)
class Report:
    problems: Sequence[Problem] = ()
    fatal: Sequence[str] = ()
    files: Sequence[str] = ()
    lines: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    advice: Sequence[str] = ()
    left_out: Sequence[str] = ()
    more_left_out: int = 0
    remarks: Sequence[str] = ()
    verdict: str = ""


@dataclass(frozen=True)
class Preview:
    """Rows of text, or a sheet of images."""

    problems: Sequence[Problem] = ()
    rows: Sequence[Shown] = ()
    images: Sequence[str] = ()
    sheet: bool = False
    first: int = 1
    remarks: Sequence[str] = ()


def columns(form: SettingsForm) -> tuple[Columns | None, list[Problem]]:
    try:
        return columns_of(form.table()), []
    except RankwiseError as error:
        return None, placed(error)


def report(form: SettingsForm) -> Report:
    remarks = Remarks()
    try:
        planned = form.planned(only=READING)
        from rankwise.commands.data import check

        assert planned.data is not None, "the form has rows"
        made = check(planned.data, planned.model, images=planned.images, objective=planned.objective, callback=remarks)
    except RankwiseError as error:
        return Report(problems=placed(error), remarks=remarks.texts)
    return _as_report(made, remarks.texts)


def _as_report(report: DataReport, remarks: Sequence[str]) -> Report:
    lines = [(label, text) for label, text, count in lines_of(report) if count or not report.fatal]
    files = [
        *map(about, report.files),
        *(f"{name}: belongs to another split and is not read" for name in report.left_aside),
    ]
    listed = [one.why for one in report.skipped_rows[:LISTED]]
    return Report(
        fatal=[*map(with_names, report.fatal)], files=[*map(with_names, files)], lines=lines,
        warnings=[*map(with_names, report.warnings)], advice=report.advice, left_out=[*map(with_names, listed)],
        more_left_out=report.skipped - len(listed), remarks=remarks, verdict=verdict_of(report),
    )  # fmt: skip


def preview(form: SettingsForm, first: int, rows: int) -> Preview:
    """`first` counts from 1."""
    remarks = Remarks()
    try:
        planned = form.planned(only=READING)
        from rankwise.commands.data import preview as preview_command
        from rankwise.commands.preview_images import Sheet, holds_images

        assert planned.data is not None, "the form has rows"
        images = holds_images(planned.data)
        made = preview_command(
            planned.data, planned.model, rows=min(rows, MOST_ROWS) if not images else None, first=first,
            out=sheet_file() if images else None, images=planned.images, objective=planned.objective, callback=remarks,
        )  # fmt: skip
    except RankwiseError as error:
        return Preview(problems=placed(error), remarks=remarks.texts, first=first)
    if isinstance(made, Sheet):
        named = [f"{at}  {one.label}{'' if one.left_out is None else f', left out: {one.left_out}'}"
                 for at, one in enumerate(made.rows, start=first)]  # fmt: skip
        return Preview(images=named, sheet=True, first=first, remarks=remarks.texts)
    made = [replace(one, where=with_names(one.where)) for one in made]
    return Preview(rows=made, first=first, remarks=remarks.texts)


def sheet_file() -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER / SHEET
