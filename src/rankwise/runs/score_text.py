"""Scores and their details as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankwise.errors import one_line, some
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.measured import ClassDetails, Difference, FeatureForgetting, Measured, OneClass, SetDetails

MOST_LABELS = 12


def score_line(task: str, who: str, side: ModelScores, differences: Mapping[str, Difference] | None = None) -> str:
    """Format the scores of one model; for a base, with the differences of the tuned model."""
    scores = [
        f"{metric} {measured_text(one)}" + (f", tuned: {verdict_text(differences[metric])}" if differences else "")
        for metric, one in side.metrics.items()
    ]
    return f"{task}, {who}: {'; '.join(scores)}"


def measured_text(one: Measured) -> str:
    return f"{one.value:.4g} ({one.low:.4g} to {one.high:.4g})"


def verdict_text(difference: Difference) -> str:
    verdict = difference.verdict if difference.verdict != "cannot tell" else f"cannot tell with n = {difference.n:,}"
    why = f"; {difference.undecided}" if difference.undecided else ""
    return f"{verdict}, difference {difference.difference:+.4g} ({difference.low:+.4g} to {difference.high:+.4g}){why}"


def labels_text(labels: Mapping[str, int]) -> str:
    """Describe the choices if they are the answers that occur in the file."""
    listed = some((f"{label} ({count:,})" for label, count in labels.items()), MOST_LABELS)
    return (
        f"the task names no choices, so the model chooses among the {len(labels)} different answers in the file "
        f"(number of rows in brackets): {listed}"
    )


def feature_lines(one: FeatureForgetting) -> list[str]:
    """Describe what became of the features of a model of images."""
    lines = [
        f"forgetting on {one.images:,} images of {one.data}: CKA of base and tuned features {measured_text(one.cka)}; "
        "1 is unchanged up to rotation and scale, 0 is unrelated"
    ]
    if one.probe is not None:
        lines.append(
            f"a linear probe for {len(one.classes)} classes of these images is right in {one.probe.a:.1%} with the "
            f"base's features and in {one.probe.b:.1%} with the tuned model's: {verdict_text(one.probe)}"
        )
    return lines


MOST_CLASSES, MOST_CONFUSIONS = 20, 5
HEADS = ("class", "rows", "precision", "recall", "F1")


def class_lines(details: ClassDetails) -> list[str]:
    """List each class, or of many classes those with the lowest F1, and then the most frequent confusions."""
    shown = weakest(details.classes)
    lines = figure_lines(HEADS, shown)
    if len(shown) < len(details.classes):
        lines.insert(0, f"of {len(details.classes):,} classes, the {len(shown)} with the lowest F1:")
    if confusions := most_confused(details)[:MOST_CONFUSIONS]:
        lines.append(
            "most frequent confusions: "
            + ", ".join(
                f"{count:,} {one_line(actual)} as {one_line(predicted)}" for actual, predicted, count in confusions
            )
        )
    return [*lines, calibration_line(details)]


def figure_lines(heads: Sequence[str], classes: Sequence[OneClass]) -> list[str]:
    """The figures of each class as a table."""
    rows = [tuple(heads), *map(_cells, classes)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def weakest(classes: list[OneClass], most: int = MOST_CLASSES) -> list[OneClass]:
    """All classes in their order, or of more than `most` those that occur with the lowest F1, the lowest first."""
    if len(classes) <= most:
        return classes
    measured = [(one.f1.value, at) for at, one in enumerate(classes) if one.f1 is not None]
    return [classes[at] for _, at in sorted(measured)[:most]]


def most_confused(details: ClassDetails) -> list[tuple[str, str, int]]:
    """[actual class, predicted class, rows] of all wrong pairs, the most frequent first."""
    wrong = sorted((-count, actual, predicted) for actual, predicted, count in details.confusion if actual != predicted)
    return [
        (details.classes[actual].name, details.classes[predicted].name, -count) for count, actual, predicted in wrong
    ]


def calibration_line(details: ClassDetails) -> str:
    rows = sum(one.rows for one in details.calibration)
    confidence = sum(one.rows * one.confidence for one in details.calibration) / max(rows, 1)
    right = sum(one.rows * one.right.value for one in details.calibration) / max(rows, 1)
    return (
        f"calibration: on average {confidence:.1%} sure and {right:.1%} right; on {rows:,} rows, chance alone gives a "
        f"perfectly calibrated classifier an error of about {details.calibrated_error:.2g}"
    )


def _cells(one: OneClass) -> tuple[str, ...]:
    return (one_line(one.name, 40), f"{one.rows:,}", _value(one.precision), _value(one.recall), _interval(one.f1))


def _value(one: Measured | None) -> str:
    return "-" if one is None else f"{one.value:.3f}"


def _interval(one: Measured | None) -> str:
    return "-" if one is None else f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


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
