"""What the form for a new run shows before it is trained.

the forecast    whether it fits and what it takes: the plan that the terminal prints. torch is not imported for a model
                of the catalogue, so the figures follow each change of the form
the rows        their columns, the data report, and a preview with the loss tokens: the same functions as `rankwise data
                check` and `rankwise data preview`; what they drop, change or guess is listed
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.commands.plan import plan as plan_of
from rankwise.commands.runs import as_continued
from rankwise.config.data import DataConfig
from rankwise.errors import ConfigError, DataError, ModelError, RankwiseError
from rankwise.planning.estimate import Estimate
from rankwise.planning.plan import Plan
from rankwise.reporting.provenance import data_blocks
from rankwise.reporting.quantities import rough_duration, size
from rankwise.rows.forms.formats import form_of
from rankwise.rows.forms.proposals import NO_FORM, can_be_typed, guessed
from rankwise.rows.sources import first_rows, open_source, raw_records
from rankwise.runs.records import Event, StatusMessage, WarningMessage
from rankwise.studio.pages import drawing
from rankwise.studio.settings_form import READING, Problem, SettingsForm, problems_of, with_labels
from rankwise.studio.uploads import FOLDER, with_names

if TYPE_CHECKING:
    from rankwise.rows.text.outcome import Shown as ShownRow


TIGHT = 0.85
"""Share of the memory from which a training is called tight."""
OF_DATA = ("data.", "validation.")
SHEET = "sheet.png"
MOST_ROWS = 20
LONGEST_EXAMPLE = 160
CHOOSE = "Choose the text and the answer or label first, in the table of columns."
COUNTING_SECONDS = 2.0
"""For which rows are counted at most."""


@dataclass(frozen=True)
class ForecastColumn:
    name: str
    example: str
    typed: bool
    """Whether its name can stand in braces."""


@dataclass(frozen=True)
class Columns:
    """`rows` are those of all files, or None where they are too many to be counted in a moment."""

    columns: tuple[ForecastColumn, ...]
    format: str | None
    """The known format of the first row; None where its columns match none."""
    prompt: str | None
    """A proposal for `data.prompt` where the format is not known."""
    completion: str | None
    images: bool
    files: tuple[str, ...]
    rows: int | None


def columns_of(data: DataConfig) -> Columns:
    """DataError where there is no row that can be read."""
    reading = open_source(data, data.all_sources[0])
    part = reading.parts[0]
    _, row = next(raw_records(part), ("", None))
    if isinstance(row, DataError):
        raise row
    if row is None:
        raise DataError(f"{data.all_sources[0].path}: has no rows.")
    images = part.of_images
    known = "image" if images else form_of(row)
    guess = guessed(row, first_rows(reading)) if known is None else None
    prompt, completion = (None, None) if guess is None else (" ".join(f"{{{one}}}" for one in guess[0]), guess[1])
    shown = tuple(ForecastColumn(name, _example(value), can_be_typed(name)) for name, value in row.items())
    names = tuple(one.name for one in reading.parts)
    return Columns(
        columns=shown, format=known, prompt=prompt, completion=None if completion is None else f"{{{completion}}}",
        images=images, files=names, rows=_count(reading.parts),
    )  # fmt: skip


def _example(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_EXAMPLE else f"{text[:LONGEST_EXAMPLE]}…"


def _count(parts: list[Any]) -> int | None:
    until, rows = time.monotonic() + COUNTING_SECONDS, 0
    for part in parts:
        for _ in raw_records(part):
            rows += 1
            if rows % 1000 == 0 and time.monotonic() > until:
                return None
    return rows


@dataclass(frozen=True)
class Verdict:
    """`word` is fits, tight, too large, waiting for rows, or unknown where no memory is forecast for such a model."""

    word: str
    sentence: str
    peak: int = 0
    usable: int = 0

    @property
    def share(self) -> float:
        """The peak as a share of the usable memory, at most 1, for the gauge."""
        return min(1.0, self.peak / max(1, self.usable))


@dataclass(frozen=True)
class Figure:
    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ShownForecast:
    """A plan on the page, or problems, each with its field."""

    problems: tuple[Problem, ...] = ()
    verdict: Verdict | None = None
    figures: tuple[Figure, ...] = ()
    remedies: tuple[tuple[str, str], ...] = ()
    """Settings after which it fits, separated by spaces, and their price."""
    notes: tuple[str, ...] = ()
    rows: int | None = None
    """Training rows, as far as they are known."""

    @property
    def fits(self) -> bool:
        return self.verdict is None or self.verdict.word != "too large"


def forecast(form: SettingsForm) -> ShownForecast:
    """Problems of the data are listed, and the model is planned all the same."""
    if not form.values.get("model.name") and not form.values.get("adapter.start_from"):
        return ShownForecast(notes=("Choose a model to see what it takes.",))
    try:
        return _shown(plan_of(as_continued(form.planned(without=("run",) if form.values.get("data.path") else
                                                     ("run", *OF_DATA)))))  # fmt: skip
    except RankwiseError as error:
        problems = placed(error)
    if any(not one.field.startswith(OF_DATA) for one in problems) or not form.values.get("data.path"):
        return ShownForecast(tuple(problems))
    try:
        without = _shown(plan_of(as_continued(form.planned(without=("run", *OF_DATA)))))
    except RankwiseError:
        return ShownForecast(tuple(problems))
    return replace(without, problems=tuple(problems), rows=None)


def placed(error: RankwiseError) -> list[Problem]:
    """The problems of an error, each with its field."""
    if isinstance(error, ConfigError):
        return problems_of(error)
    text = with_names(str(error))
    if NO_FORM in text:
        text = f"{re.split(' Name the columns| Known formats', text)[0]} {CHOOSE}"
    field = "data.path" if isinstance(error, DataError) else "model.name" if isinstance(error, ModelError) else ""
    return [Problem(field, with_labels(text))]


def _shown(plan: Plan) -> ShownForecast:
    verdict = _verdict(plan)
    remedies = plan.remedies if plan.trained and not plan.fit.fits else []
    return ShownForecast(
        verdict=verdict, figures=tuple(_figures(plan)),
        remedies=tuple((" ".join(one.changes), one.price) for one in remedies),
        rows=None if plan.rows is None else round(plan.rows.documents.likely),
    )  # fmt: skip


def _verdict(plan: Plan) -> Verdict:
    if not plan.trained and plan.config.data is None:
        return Verdict("waiting", "Memory and time follow when the rows and their columns are chosen.")
    if not plan.trained:
        return Verdict("unknown", "Memory and time are not forecast for this kind of model.")
    fit = plan.fit
    peak, usable, name = fit.peak, fit.device.usable, fit.device.name
    room = f"{size(peak)} of {size(usable)} on {name}"
    again = f", with {fit.recomputed} blocks computed twice" if fit.recomputed else ""
    word, sentence = "fits", f"Fits: {room}{again}."
    if not fit.fits:
        word, sentence = "too large", f"Needs {size(peak)}{again}, and {size(usable)} are there on {name}."
    elif peak > TIGHT * usable:
        word, sentence = "tight", f"Fits, but is tight: {room}{again}."
    return Verdict(word, sentence, peak, usable)


def _figures(plan: Plan) -> list[Figure]:
    counted, duration = plan.forecast.parameters, plan.duration
    most = "" if counted.exact else "at most "
    figures = [Figure("Trained parameters", f"{most}{counted.trainable:,}", f"of {counted.total:,}")]
    if plan.trained:
        figures.append(Figure("Memory", size(plan.fit.peak)))
    if duration is not None and plan.steps is not None:
        figures.append(Figure("Time", f"{plan.most}{rough_duration(duration.total.likely)}", _between(duration.total)))
    elif duration is not None:
        figures.append(Figure("Time of a step", rough_duration(duration.step.likely), _between(duration.step)))
    if counted.file_bytes is not None:
        figures.append(Figure("Adapter", f"{most}{size(counted.file_bytes)}", "in float32"))
    if plan.steps is not None and plan.rows is not None:
        tokens = plan.rows.tokens.likely
        figures.append(Figure("Steps", f"{plan.most}{plan.steps:,}", f"over {tokens:,.0f} tokens"))
    if plan.disk is not None:
        figures.append(Figure("Disk while it trains", size(plan.disk.total)))
    return figures


def _between(estimate: Estimate) -> str:
    return "" if estimate.exact else f"{rough_duration(estimate.low)} to {rough_duration(estimate.high)}"


@dataclass
class Remarks:
    """Collects the messages of a command."""

    texts: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StatusMessage | WarningMessage):
            self.texts.append(with_labels(with_names(event.text)))


@dataclass(frozen=True)
class ForecastView:
    problems: Sequence[Problem] = ()
    blocks: Sequence[Any] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Preview:
    """Rows of text, or a sheet of images."""

    problems: Sequence[Problem] = ()
    rows: Sequence[ShownRow] = ()
    images: Sequence[str] = ()
    sheet: bool = False
    first: int = 1
    remarks: Sequence[str] = ()


def columns_shown(form: SettingsForm) -> tuple[Columns | None, list[Problem]]:
    try:
        return columns_of(form.table()), []
    except RankwiseError as error:
        return None, placed(error)


def report_shown(form: SettingsForm) -> ForecastView:
    remarks = Remarks()
    try:
        planned = form.planned(only=READING)
        from rankwise.commands.data import check

        assert planned.data is not None, "the form has rows"
        made = check(planned.data, planned.model, images=planned.images, objective=planned.objective, callback=remarks)
    except RankwiseError as error:
        return ForecastView(problems=placed(error), remarks=remarks.texts)
    return ForecastView(blocks=[*map(drawing, data_blocks(made))], remarks=remarks.texts)


def preview_shown(form: SettingsForm, first: int, rows: int) -> Preview:
    """`first` counts from 1."""
    remarks = Remarks()
    try:
        planned = form.planned(only=READING)
        from rankwise.commands.data import PreviewSheet, holds_images
        from rankwise.commands.data import preview as preview_command

        assert planned.data is not None, "the form has rows"
        images = holds_images(planned.data)
        made = preview_command(
            planned.data, planned.model, rows=min(rows, MOST_ROWS) if not images else None, first=first,
            out=sheet_file() if images else None, images=planned.images, objective=planned.objective, callback=remarks,
        )  # fmt: skip
    except RankwiseError as error:
        return Preview(problems=placed(error), remarks=remarks.texts, first=first)
    if isinstance(made, PreviewSheet):
        named = [f"{at}  {with_names(one.describe())}" for at, one in enumerate(made.rows, start=first)]
        return Preview(images=named, sheet=True, first=first, remarks=remarks.texts)
    made = [replace(one, where=with_names(one.where)) for one in made]
    return Preview(rows=made, first=first, remarks=remarks.texts)


def sheet_file() -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER / SHEET
