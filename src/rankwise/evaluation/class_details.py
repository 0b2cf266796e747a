"""Details of a classifier's predictions: figures of each class, confusions, calibration, and wrong rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.evaluation.calibration import BINS, EDGES, bins_of, error_of_calibrated
from rankwise.evaluation.class_metrics import Scored
from rankwise.evaluation.confusion import class_table, f1_of_classes
from rankwise.evaluation.intervals import measured_each, measured_share
from rankwise.evaluation.span_formulas import Sums, figures_of_types
from rankwise.runs.measured import CalibrationBin, ClassDetails, OneClass, WrongRow

MOST_WRONG, THUMBNAILS = 500, 24
"""Wrong rows that are stored, and how many of them with a picture."""


@dataclass(frozen=True)
class RowView:
    """What a reader sees of a row."""

    name: str
    text: str | None = None
    thumbnail: str | None = None


Show = Callable[[int, bool], RowView]
"""Makes the view of the row with a number, and draws its thumbnail only if that is true."""


def class_details(scored: Scored, show: Show) -> ClassDetails:
    pairs = np.stack((np.asarray(scored.predicted), np.asarray(scored.actual)), 1).astype(np.int64)
    confusion = Counter((actual, predicted) for predicted, actual in pairs.tolist())
    confidences, hits = np.asarray(scored.calibration).T
    return ClassDetails(
        classes=_classes(scored.targets.classes, pairs),
        confusion=[(*pair, count) for pair, count in sorted(confusion.items())],
        calibration=_calibration(confidences, hits),
        calibrated_error=error_of_calibrated(confidences),
        wrong_rows=int((hits == 0).sum()),
        wrong=_wrong(scored, pairs, confidences, show),
    )


def _classes(names: tuple[str, ...], pairs: np.ndarray) -> list[OneClass]:
    actual, predicted = (np.bincount(pairs[:, side], minlength=len(names)) for side in (1, 0))
    right = np.bincount(pairs[pairs[:, 0] == pairs[:, 1], 0], minlength=len(names))
    each = measured_each(f1_of_classes, class_table(pairs.astype(np.float64)))
    f1 = dict(zip(np.unique(pairs).tolist(), each, strict=True))
    return [
        OneClass(
            name=name, rows=int(actual[at]), predicted=int(predicted[at]), f1=f1.get(at),
            precision=measured_share(int(right[at]), int(predicted[at])),
            recall=measured_share(int(right[at]), int(actual[at])),
        )
        for at, name in enumerate(names)
    ]  # fmt: skip


def figures_of(names: Sequence[str], table: Sums) -> list[OneClass]:
    """Figures of each name, from its sums [right, predicted, actual] in each row (N, 3 C)."""
    if not names:
        return []
    total, count = table.sum(0).astype(int), len(names)
    defined = np.flatnonzero(~np.isnan(figures_of_types(table.sum(0))))
    measured = measured_each(lambda sums: figures_of_types(sums)[..., defined], table)
    figures = dict(zip(defined.tolist(), measured, strict=True))
    return [
        OneClass(
            name=name, rows=total[3 * at + 2], predicted=total[3 * at + 1],
            precision=figures.get(at), recall=figures.get(count + at), f1=figures.get(2 * count + at),
        )
        for at, name in enumerate(names)
    ]  # fmt: skip


def _calibration(confidences: np.ndarray, hits: np.ndarray) -> list[CalibrationBin]:
    bins = bins_of(confidences)
    return [
        CalibrationBin(
            low=float(EDGES[at]), high=float(EDGES[at + 1]), rows=int(inside.sum()),
            confidence=min(1.0, float(confidences[inside].mean())), right=right,
        )
        for at in range(BINS)
        if (right := measured_share(int(hits[inside := bins == at].sum()), int(inside.sum()))) is not None
    ]  # fmt: skip


def _wrong(scored: Scored, pairs: np.ndarray, confidences: np.ndarray, show: Show) -> list[WrongRow]:
    """The most confident first; equally confident rows in their order."""
    numbers = np.flatnonzero(pairs[:, 0] != pairs[:, 1])
    numbers = numbers[np.argsort(-confidences[numbers], kind="stable")][:MOST_WRONG]
    names, rows = scored.targets.classes, list[WrongRow]()
    for rank, number in enumerate(numbers.tolist()):
        predicted, actual = pairs[number].tolist()
        rows.append(WrongRow(
            actual=names[actual], predicted=names[predicted],
            probability=min(1.0, float(confidences[number])),
            probability_of_actual=min(1.0, float(scored.outputs[number, actual])),
            **vars(show(number, rank < THUMBNAILS)),
        ))  # fmt: skip
    return rows
