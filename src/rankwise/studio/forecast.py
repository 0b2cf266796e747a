"""Whether a training fits and what it takes, as figures for the page: the plan that the terminal prints.

torch is not imported for a model of the catalogue, so the figures follow each change of the form.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.commands.plan import plan as plan_of
from rankwise.commands.starting import as_continued
from rankwise.errors import ConfigError, DataError, ModelError, RankwiseError
from rankwise.planning.estimate import Estimate
from rankwise.planning.plan import Plan
from rankwise.reporting.quantities import rough_duration, size
from rankwise.studio.settings_form import Problem, SettingsForm, problems_of
from rankwise.studio.uploads import with_names

TIGHT = 0.85
"""Share of the memory from which a training is called tight."""
OF_DATA = ("data.", "validation.")


@dataclass(frozen=True)
class Verdict:
    """`word` is fits, tight, too large, or unknown where rankwise forecasts no memory for such a model."""

    word: str
    sentence: str
    peak: int = 0
    usable: int = 0

    @property
    def share(self) -> float:
        """Of the memory, at most 1 as a gauge has it."""
        return min(1.0, self.peak / max(1, self.usable))


@dataclass(frozen=True)
class Figure:
    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Shown:
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


def forecast(form: SettingsForm) -> Shown:
    """Problems of the data are listed, and the model is planned all the same."""
    if not form.given.get("model.name") and not form.given.get("adapter.start_from"):
        return Shown(notes=("Choose a model to see what it takes.",))
    try:
        return _shown(plan_of(as_continued(form.planned(without=("run",) if form.given.get("data.path") else
                                                     ("run", *OF_DATA)))))  # fmt: skip
    except RankwiseError as error:
        problems = placed(error)
    if any(not one.field.startswith(OF_DATA) for one in problems) or not form.given.get("data.path"):
        return Shown(tuple(problems))
    try:
        without = plan_of(as_continued(form.planned(without=("run", *OF_DATA))))
    except RankwiseError:
        return Shown(tuple(problems))
    shown = _shown(without)
    return Shown(tuple(problems), shown.verdict, shown.figures, shown.remedies, shown.notes)


def placed(error: RankwiseError) -> list[Problem]:
    """The problems of an error, each with its field."""
    if isinstance(error, ConfigError):
        return problems_of(error)
    field = "data.path" if isinstance(error, DataError) else "model.name" if isinstance(error, ModelError) else ""
    return [Problem(field, with_names(str(error)))]


def _shown(plan: Plan) -> Shown:
    verdict = _verdict(plan)
    remedies = plan.remedies if plan.trained and not plan.fit.fits else []
    return Shown(
        verdict=verdict, figures=tuple(_figures(plan)),
        remedies=tuple((" ".join(one.changes), one.price) for one in remedies),
        rows=None if plan.rows is None else round(plan.rows.documents.likely),
    )  # fmt: skip


def _verdict(plan: Plan) -> Verdict:
    if not plan.trained:
        return Verdict("unknown", "Memory and time are not forecast for this kind of model.")
    fit = plan.fit
    peak, usable, name = fit.peak, fit.device.usable, fit.device.name
    room = f"{size(peak)} of {size(usable)} on {name}"
    again = f", with {fit.recomputed} blocks computed twice" if fit.recomputed else ""
    if not fit.fits:
        return Verdict("too large", f"Needs {size(peak)}{again}, and {size(usable)} are there on {name}.", peak, usable)
    if peak > TIGHT * usable:
        return Verdict("tight", f"Fits, but is tight: {room}{again}.", peak, usable)
    return Verdict("fits", f"Fits: {room}{again}.", peak, usable)


def _figures(plan: Plan) -> list[Figure]:
    counted, duration = plan.forecast.parameters, plan.duration
    most = "" if counted.exact else "at most "
    figures = [Figure("Trained parameters", f"{most}{counted.trainable:,}", f"of {counted.total:,}")]
    if plan.trained:
        figures.append(Figure("Memory", size(plan.fit.peak)))
    if duration is not None and plan.steps is not None:
        figures.append(Figure("Time", rough_duration(duration.total.likely), _between(duration.total)))
    elif duration is not None:
        figures.append(Figure("Time of a step", rough_duration(duration.step.likely), _between(duration.step)))
    if counted.file_bytes is not None:
        figures.append(Figure("Adapter", f"{most}{size(counted.file_bytes)}", "in float32"))
    if plan.steps is not None and plan.rows is not None:
        tokens = plan.rows.tokens.likely
        figures.append(Figure("Steps", f"{plan.steps:,}", f"over {tokens:,.0f} tokens"))
    if plan.disk is not None:
        figures.append(Figure("Disk while it trains", size(plan.disk.total)))
    return figures


def _between(estimate: Estimate) -> str:
    return "" if estimate.exact else f"{rough_duration(estimate.low)} to {rough_duration(estimate.high)}"
