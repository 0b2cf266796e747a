"""Sections on classes, labels and spans: figures of each, confusions, calibration, and wrong rows."""

from __future__ import annotations

from rankwise.errors import one_line
from rankwise.reporting.document import Section, figure, folded, matrix, opened, paragraph, table
from rankwise.reporting.figures import Panel, Sheet, drawn
from rankwise.reporting.markup import Content, Markup, Rows, element, joined, picture
from rankwise.reporting.quality import HEIGHT, WIDTH, value, whisker
from rankwise.reporting.quantities import figure as number
from rankwise.reporting.quantities import plural, share, with_interval
from rankwise.runs.evaluations import Evaluation
from rankwise.runs.measured import SUMMARISED, ClassDetails, Measurement, OneClass, SetDetails
from rankwise.runs.snapshot import RunSnapshot

MOST_CLASSES, MOST_CONFUSIONS, IN_A_SENTENCE, OPEN_ROWS = 20, 20, 5, 8
HEADS = ("class", "rows", "predicted", "precision", "recall", "F1", "")


def classes_section(run: RunSnapshot) -> Section | None:
    parts = [
        (task, one, details)
        for task, one in run.evaluations.items()
        if (details := one.tuned.classification) is not None
    ]
    if not parts:
        return None
    return Section(
        "classes", "Classes", {task: details.summary() for task, _, details in parts},
        [block for task, one, details in parts for block in
         (element("h3", f"{task}, {plural(one.n, 'row')} of {one.data}"), *class_blocks(details),
          _calibration(one, details))],
        about="Precision is the share of the rows predicted as a class that are right, recall is the share of the "
        "class's rows that are found, and F1 is their harmonic mean. Intervals are 95 % intervals.",
    )  # fmt: skip


def class_blocks(details: ClassDetails) -> list[Markup]:
    """What a page and a terminal show of a classifier."""
    return [*_figures(details), *_confusions(details), paragraph(_sure(details)), *_wrong(details)]


def weakest(classes: list[OneClass]) -> list[OneClass]:
    """All classes in their order, or of many those that occur with the lowest F1, the lowest first."""
    if len(classes) <= MOST_CLASSES:
        return classes
    measured = [(one.f1.value, at) for at, one in enumerate(classes) if one.f1 is not None]
    return [classes[at] for _, at in sorted(measured)[:MOST_CLASSES]]


def most_confused(details: ClassDetails) -> list[tuple[str, str, int]]:
    """[actual class, predicted class, rows] of all wrong pairs, the most frequent first."""
    wrong = sorted((-count, actual, predicted) for actual, predicted, count in details.confusion if actual != predicted)
    return [
        (details.classes[actual].name, details.classes[predicted].name, -count) for count, actual, predicted in wrong
    ]


def _figures(details: ClassDetails) -> list[Markup]:
    shown = weakest(details.classes)
    whole = table(HEADS, list(map(_cells, shown)), label="classes", lead=1)
    if len(shown) == len(details.classes):
        return [whole]
    rest = folded(f"All {len(details.classes):,} classes", table(HEADS, list(map(_cells, details.classes)), lead=1))
    return [paragraph(f"The {len(shown)} classes with the lowest F1 of {len(details.classes):,}:"), whole, rest]


def _cells(scores: OneClass) -> list[Content]:
    """A line of the table of figures."""
    figures = map(value, (scores.precision, scores.recall, scores.f1))
    return [scores.name, f"{scores.rows:,}", f"{scores.predicted:,}", *figures, _scale(scores.f1)]


def _scale(value: Measurement | None) -> Content:
    """Draw an interval on a scale from 0 to 1."""
    if value is None:
        return ""
    ends = [4 + (WIDTH - 8) * end for end in (value.low, value.value, value.high)]
    rule = element("line", x1=4, x2=WIDTH - 4, y1=HEIGHT / 2, y2=HEIGHT / 2, class_="s-rule")
    return whisker(rule, ends, "tuned", f"{number(value.value)} on a scale from 0 to 1")


def _confusions(details: ClassDetails) -> list[Markup]:
    confusions = most_confused(details)
    listed = ", ".join(f"{count:,} {one_line(actual)} as {one_line(predicted)}"
                       for actual, predicted, count in confusions[:IN_A_SENTENCE])  # fmt: skip
    sentence = [paragraph(f"Most frequent confusions: {listed}.")] if confusions else []
    if len(details.classes) <= MOST_CLASSES:
        caption = (
            "Confusion matrix: a line for each true class, a column for each predicted one. The shade is the share of "
            "the true class's rows."
        )
        return [*sentence, figure(_matrix(details), caption)]
    rows = {one.name: one.rows for one in details.classes}
    cells: Rows = [
        [actual, predicted, f"{count:,}", share(count, rows[actual])]
        for actual, predicted, count in confusions[:MOST_CONFUSIONS]
    ]
    heads = ("true class", "predicted as", "rows", "share of the class")
    pairs = plural(len(confusions), "pair")
    return [*sentence, folded(f"The most frequent confusions, of {pairs} of a true and another predicted class",
                              table(heads, cells, words=(0, 1), label="confusions", lead=2))]  # fmt: skip


def _matrix(details: ClassDetails) -> Markup:
    counts = {(actual, predicted): count for actual, predicted, count in details.confusion}
    names = [one.name for one in details.classes]

    def cell(actual: int, predicted: int) -> tuple[str, float, str] | None:
        count = counts.get((actual, predicted), 0)
        kind = "hit" if actual == predicted else "miss"
        return (f"{count:,}", count / details.classes[actual].rows, kind) if count else None

    return matrix(names, names, cell, "confusion matrix")


def _sure(details: ClassDetails) -> str:
    rows = sum(one.rows for one in details.calibration)
    confidence = sum(one.rows * one.confidence for one in details.calibration) / max(rows, 1)
    right = sum(one.rows * one.right.value for one in details.calibration) / max(rows, 1)
    return (
        f"Calibration: on average {confidence:.1%} sure and {right:.1%} right; on {rows:,} rows, chance alone gives a "
        f"perfectly calibrated classifier an error of about {number(details.calibrated_error)}."
    )


def _calibration(evaluation: Evaluation, details: ClassDetails) -> Markup:
    error = evaluation.tuned.metrics.get("calibration_error")
    own = f"The calibration error is {with_interval(error)}. " if error else ""
    caption = (
        "Left: the share of right predictions by the probability that the model gave them, with intervals; a "
        f"calibrated model follows the dashed line. Right: the number of rows by that probability. {own}"
    )
    return figure(element("div", calibration_charts(details), class_="small-charts"), caption)


def _wrong(details: ClassDetails) -> list[Markup]:
    if not details.wrong:
        return []
    shown = details.wrong[:SUMMARISED]
    heading = _headed(f"Wrong rows: {details.wrong_rows:,}, the most confident first", details)
    rows: Rows = [
        [row.name, picture(row.thumbnail, row.name) if row.thumbnail else row.text or "", row.actual, row.predicted,
         share(row.probability, 1), share(row.probability_of_actual, 1)]
        for row in shown
    ]  # fmt: skip
    heads = ("row", "content", "true class", "predicted", "its probability", "of the true class")
    return [heading, *opened(heads, rows, OPEN_ROWS, words=(0, 1, 2, 3), label="wrong rows")]


def _headed(text: str, details: ClassDetails | SetDetails) -> Markup:
    shown = min(len(details.wrong), SUMMARISED)
    return element("h3", f"{text}; {shown} of them are shown" if shown < details.wrong_rows else text)


TALL, BAR = 260, 13
UNDER = "probability of the predicted class"


def calibration_charts(details: ClassDetails) -> Markup:
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
        drawn(described, reliability, TALL, "narrow"),
        drawn(counted, histogram, TALL, "narrow"),
    )


def _panel(sheet: Sheet, heading: str) -> Panel:
    panel = sheet.panel(52, 34, 16, 40)
    panel.across(0, 1, integers=False, under=UNDER)
    panel.headed(heading)
    return panel


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
        [block for task, one, details in parts for block in
         (element("h3", f"{task}, {plural(one.n, 'row')} of {one.data}"), *set_blocks(details))],
        about=ABOUT[of] + MEANING.format(of, of),
    )  # fmt: skip


def set_blocks(details: SetDetails) -> list[Markup]:
    """What a page and a terminal show of labels or spans."""
    heads = (details.of.removesuffix("s"), f"true {details.of}", "predicted", "precision", "recall", "F1", "")
    figures = table(heads, list(map(_cells, weakest(details.types))), label=details.of, lead=1)
    return [figures if details.types else paragraph(f"No row has any {details.of}."), *_wrong_sets(details)]


def _wrong_sets(details: SetDetails) -> list[Markup]:
    if not details.wrong:
        return []
    rows: Rows = [
        [row.name, row.text, ", ".join(row.missed) or "\u2013", ", ".join(row.wrong) or "\u2013"]
        for row in details.wrong[:SUMMARISED]
    ]
    heading = f"Rows with wrong or missed {details.of}: {details.wrong_rows:,} of {details.rows:,}"
    heads = ("row", "text", "missed", "predicted in error")
    return [_headed(heading, details), *opened(heads, rows, OPEN_ROWS, words=(0, 1, 2, 3), label="wrong rows")]
