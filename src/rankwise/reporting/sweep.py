"""The page of a sweep: for each setting the curve of validation loss, and how flat it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rankwise.reporting.document import Document, Section, figure, paragraph, table
from rankwise.reporting.figures import Sheet, chart
from rankwise.reporting.markup import Content, Markup, Rows
from rankwise.reporting.quantities import duration, plural
from rankwise.reporting.quantities import figure as number
from rankwise.runs.sweeps import FLAT, SweepRecord, SweptTrial, shown

LOG_FROM = 8
"""The scale of a setting is logarithmic if its largest value is so many times the smallest."""
MOST_TICKS = 9


def sweep_report(sweep: SweepRecord) -> Document:
    best = sweep.best
    verdict = "No trial was finished." if best is None else (
        f"The best of {plural(len(sweep.finished), 'run')} is {best.run}, with a validation loss of "
        f"{number(best.loss or 0.0)}."
    )  # fmt: skip
    facts = [("method", sweep.method), ("trials", f"{len(sweep.trials):,} of {sweep.planned:,}")]
    sections = [_curve_section(sweep, key, line) for key, line in zip(sweep.axes, sweep.conclusions(), strict=False)]
    return Document(
        title=sweep.name, over="rankwise sweep", verdict=verdict, key_facts=facts,
        sections=[*(sections if best else []), _table_section(sweep)],
    )  # fmt: skip


def _curve_section(sweep: SweepRecord, key: str, conclusion: str) -> Section:
    caption = (
        "Each circle is a run. The line joins the best run of each value; filled circles on it lose less than "
        f"{FLAT:.0%} against the least loss."
    )
    drawing = sweep_chart(sweep, key)
    return Section(
        f"curve-{key.replace('.', '-')}", key, {"curve": sweep.curve(key), "flat": sweep.flat(key)},
        [paragraph(f"{conclusion}."), figure(drawing, caption)],
    )  # fmt: skip


def sweep_chart(sweep: SweepRecord, key: str) -> Markup:
    """Loss against one setting, on a logarithmic scale where its values span a wide range."""
    curve, flat = sweep.curve(key), sweep.flat(key)
    at = positions([value for value, _ in curve])
    losses = [one.loss or 0.0 for one in sweep.finished]
    low, high = min(losses), _highest(losses)

    def draw(sheet: Sheet) -> None:
        panel = sheet.panel(52, 36, 30, 46)
        room = 0.08 * (high - low or abs(high) or 1)
        xs = [at(value) for value, _ in curve]
        side = 0.04 * (max(xs) - min(xs) or 1)
        apart = -(-len(curve) // (5 if sheet.narrow else MOST_TICKS))
        marks = {at(value): shown(value) for value, _ in curve[::apart]}
        panel.across(min(xs) - side, max(xs) + side, under=key, marks=marks)
        panel.upwards(low - room, high + room)
        panel.headed(f"validation loss, {sweep.unit}")
        seen = [(x, loss) for x, (_, loss) in zip(xs, curve, strict=True) if loss <= high]
        panel.line([x for x, _ in seen], [loss for _, loss in seen], "tuned", width=2)
        for one in sweep.finished:
            x, loss = at(one.values[key]), one.loss or 0.0
            if loss <= high:
                on_line = one.values[key] in flat and loss == dict(curve)[one.values[key]]
                panel.dots([x], [loss], "tuned" if on_line else "quiet", size=7, hollow=not on_line)

    label = f"Validation loss by {key}: " + "; ".join(f"{shown(value)} {number(loss)}" for value, loss in curve)
    return chart(label, draw, (280, 240))


def positions(values: Sequence[Any]) -> Callable[[Any], float]:
    """Where a value stands on the axis: its logarithm, itself, or its number in the list."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric:
        return lambda value: float(list(values).index(value))
    if min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        return math.log10
    return float


def _highest(losses: Sequence[float]) -> float:
    """What is far above the others would press them into a line."""
    ordered = sorted(losses)
    middle = ordered[len(ordered) // 2]
    limit = middle + 4 * (middle - ordered[0]) + 0.05 * abs(middle)
    return max(one for one in ordered if one <= limit)


def trials_table(sweep: SweepRecord) -> Markup:
    """All trials, the best first."""
    keys = list(sweep.axes)
    failed = [one for one in sweep.trials if one.loss is None]
    rows: Rows = [_row(one, keys) for one in (*sweep.finished, *failed)]
    return table(("run", *keys, "validation loss", "time"), rows, label="trials")


def _table_section(sweep: SweepRecord) -> Section:
    return Section(
        "trials", "All trials", sweep,
        [trials_table(sweep)],
        about="Each trial is an ordinary run, which other commands read by its name.",
    )  # fmt: skip


def _row(trial: SweptTrial, keys: Sequence[str]) -> list[Content]:
    loss = trial.problem or "failed" if trial.loss is None else f"{trial.loss:.4f}"
    time = "\u2013" if trial.seconds is None else duration(trial.seconds)
    return [trial.run, *(shown(trial.values[key]) for key in keys), loss, time]
