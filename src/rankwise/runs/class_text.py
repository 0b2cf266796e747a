"""Details of a classifier's evaluation as lines of text: its classes, its confusions, and how calibrated it is."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import one_line
from rankwise.runs.class_details import ClassDetails, Measured, OneClass

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
