"""Charts made from the records of a run. The page says where a line is smoothed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

from rankwise.reporting.figures import Panel, Sheet, chart, drawn
from rankwise.reporting.markup import Markup, shown
from rankwise.reporting.quantities import figure
from rankwise.runs.evaluations import StrengthCurve
from rankwise.runs.records import LossRecord, RankRecord, ScoreRecord, StepRecord

MOST_POINTS, LONGEST_NAME = 1200, 19
LOG_FROM = 20.0
"""Scales are logarithmic if the largest value is more than so many times the smallest."""
ROLES = ("tuned", "base", "third", "fourth")
Points = tuple[Sequence[float], Sequence[float]]


def loss_chart(steps: Sequence[StepRecord], held_out: Sequence[LossRecord], unit: str) -> Markup:
    """Draw the loss of each step, thin, its average, and the validation losses as dots."""
    raw, measured = _losses(steps), _losses(held_out)
    lines = {"training": (raw[0], smoothed(raw[1]))}
    dotted = [f"validation {figure(loss)}" for loss in measured[1][-1:]]
    return _lines_chart(unit, lines | dict.fromkeys(dotted, measured), (300, 250), dots=dotted, faint=raw)


def losses_chart(runs: Mapping[str, Sequence[StepRecord]]) -> Markup:
    """Draw the losses of the first runs, as many as there are colours."""
    losses = {name: _losses(steps) for name, steps in list(runs.items())[: len(ROLES)]}
    lines = {name: (xs, smoothed(ys)) for name, (xs, ys) in losses.items()}
    return _lines_chart("nats per loss token", lines, (280, 240))


def score_chart(scores: Sequence[ScoreRecord]) -> Markup:
    """Draw each metric as a line with dots, on a scale that begins at 0 or below."""
    lines = {
        name: finite((one.step, one.value) for one in scores if one.metric == name)
        for name in dict.fromkeys(record.metric for record in scores)
    }
    return _lines_chart("score on validation rows", lines, (240, 220), dots=list(lines), least=0)


def budget_chart(ranks: Sequence[RankRecord], steps: int) -> Markup:
    """Draw the rank budget from its initial value; `steps` is where the run ended."""
    xs = [0, *(one.step for one in ranks), max(steps, ranks[-1].step)]
    ys = [ranks[0].of, *(one.budget for one in ranks), ranks[-1].budget]
    return _lines_chart(f"budget, {ranks[-1].unit}", {f"{ys[-1]:,}": (xs, ys)}, (190, 180), least=0, stepped=True)


def _lines_chart(
    heading: str, lines: Mapping[str, Points], heights: tuple[float, float], *, dots: Sequence[str] = (),
    faint: Points = ([], []), least: float | None = None, stepped: bool = False,
) -> Markup:  # fmt: skip
    """Draw named lines by step, those in `dots` with a dot for each value."""

    def draw(sheet: Sheet) -> None:
        every = [*lines.values(), faint]
        panel = sheet.panel(44, 36, 128, 40)  # with room for the names
        _scaled(panel, [*(y for _, ys in every for y in ys), *([] if least is None else [least])])
        panel.across(0, max([*(x for xs, _ in every for x in xs), 1]), under="step")
        panel.headed(heading)
        panel.line(*thinned(faint), ROLES[0], width=1, opacity=0.35)
        ends = []
        for (name, points), role in zip(lines.items(), cycle(ROLES), strict=False):
            panel.line(*thinned(points), role, width=1.2 if name in dots else 2.2, stepped=stepped)
            panel.dots(*(points if name in dots else ([], [])), role)
            ends += [(points[1][-1], role, name)] if points[0] else []
        _named(panel, ends)

    return chart("; ".join(_described(name, points) for name, points in lines.items()), draw, heights)


def _losses(records: Sequence[StepRecord | LossRecord]) -> Points:
    return finite((one.step, one.loss) for one in records)


def small_chart(heading: str, points: Points) -> Markup:
    """Draw a small chart of one value by step. Two of them stand side by side, so it is never wide."""

    def draw(sheet: Sheet) -> None:
        panel = sheet.panel(52, 34, 16, 40)
        values = points[1] or [0.0, 1.0]
        panel.upwards(0, max(values) * 1.08 or 1, most=3)
        panel.across(0, max([*points[0], 1]), under="step")
        panel.headed(heading)
        panel.line(*thinned(points), "quiet", width=1.5)

    return drawn(_described(heading, points), draw, 150, "narrow")


def strength_chart(curve: StrengthCurve) -> Markup:
    points = sorted(curve.points, key=lambda point: point.strength)

    def draw(sheet: Sheet) -> None:
        panel = sheet.panel(44, 36, 46, 46)
        _scaled(panel, [end for one in points for end in (one.loss.low, one.loss.high)])
        panel.across(0, 1.04 * max([*(one.kl.high for one in points), 1e-9]), integers=False,
                     under="KL from the base, nats per token")  # fmt: skip
        panel.headed("loss on the task, nats per loss token")
        panel.line([one.kl.value for one in points], [one.loss.value for one in points], "quiet", width=1.2)
        for one in points:
            best, (x, y) = one.strength == curve.recommended, (one.kl.value, one.loss.value)
            role, beside, name = ("tuned", (9, 14), " recommended") if best else ("quiet", (6, 11), "")
            panel.span((one.kl.low, one.kl.high), (y, y), role, width=1)
            panel.span((x, x), (one.loss.low, one.loss.high), role, width=1)
            panel.dots([x], [y], role, size=10 if best else 6, hollow=not best)
            panel.word(x, y, f"{one.strength:g}{name}", role, to="start", offset=beside, bold=best)

    label = "; ".join(f"strength {p.strength:g}: loss {figure(p.loss.value)}, KL {figure(p.kl.value)}" for p in points)
    return chart(f"Loss on the task against KL from the base. {label}", draw, (320, 280))


def _named(panel: Panel, ends: list[tuple[float, str, str]]) -> None:
    """Write names beside the chart at the height where their lines end, moved apart where they would overlap."""
    placed: list[float] = []
    for y, role, name in sorted(ends):
        wanted = panel.level(y)
        at = max(wanted, placed[-1] + 14) if placed else wanted
        placed.append(at)
        panel.word(panel.x[1], y, _cut(name), role, to="start", offset=(9, at - wanted), bold=True)


def _cut(name: str) -> str:
    """Shorten a name to the room beside a chart."""
    seen = shown(name)
    return seen if len(seen) <= LONGEST_NAME else f"{seen[: LONGEST_NAME - 1]}\u2026"


def _scaled(panel: Panel, values: Sequence[float]) -> None:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low > LOG_FROM:
        panel.upwards(low / 1.25, high * 1.25, log=True)
        return
    space = 0.08 * (high - low or abs(high) or 1)
    panel.upwards(max(0.0, low - space) if low >= 0 else low - space, high + space)


def finite(points: Iterable[tuple[float, float]]) -> Points:
    kept = [(x, y) for x, y in points if math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def smoothed(values: Sequence[float]) -> list[float]:
    """Average the values around each step over about a twentieth of the run, without lag:

    mean_t = sum_i k^|t-i| value_i / sum_i k^|t-i|
    """
    keep = 1 - 1 / max(1.0, len(values) / 20)
    before, after = _faded(values, keep), _faded(values[::-1], keep)[::-1]
    return [(a[0] + b[0] - value) / (a[1] + b[1] - 1) for value, a, b in zip(values, before, after, strict=True)]


def _faded(values: Sequence[float], keep: float) -> list[tuple[float, float]]:
    """Return the exponentially weighted sum and weight of all values up to each step."""
    total = weight = 0.0
    found = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        found.append((total, weight))
    return found


def thinned(points: Points) -> Points:
    """Keep every n-th point and the last, if there are more than a screen can show."""
    xs, ys = points
    apart = max(1, -(-len(xs) // MOST_POINTS))
    kept = [*range(0, len(xs) - 1, apart), len(xs) - 1] if xs else []
    return [xs[at] for at in kept], [ys[at] for at in kept]


def _described(name: str, points: Points) -> str:
    ys = points[1]
    span = f"from {figure(ys[0])} to {figure(ys[-1])} over {len(ys)} points" if ys else "nothing recorded"
    return f"{name}: {span}"
