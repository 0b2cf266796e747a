"""What a classifier says of rows, against what is true: each metric with one row of sums for each item (metrics.py),
and details of classes, labels and spans. The form of the targets names the class:

ScoredClasses  accuracy, balanced accuracy, macro F1, Matthews correlation, calibration; of numbers Pearson's
               correlation, and Spearman's, which is Pearson's of the ranks
ScoredLabels   rows with several labels each: micro and macro F1, and the share of rows that are right as a whole
ScoredTags     precision, recall and F1 of spans, and the share of right tags, over texts

A label is predicted where its probability is above THRESHOLD. The sums of its row are [right, predicted, actual], over
all labels for the micro F1 and for each label for the macro F1, which leaves out labels that occur nowhere. A span is
right where its first word, its last word and its type all are. Words that were cut, or that have no first token of
their own, belong to no span here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.errors import one_line
from rankwise.evaluation.intervals import measured_each, measured_share
from rankwise.evaluation.metrics import (
    BINS,
    EDGES,
    Sums,
    bins_of,
    class_table,
    error_of_calibrated,
    f1_of_classes,
    figures_of_types,
    means,
    number_row,
)
from rankwise.objectives.objective import Classifier
from rankwise.objectives.predictions import THRESHOLD, Done, Outputs
from rankwise.rows.text.example import Span, spans_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.measured import CalibrationBin, ClassDetails, OneClass, SetDetails, WrongRow, WrongSet
from rankwise.runs.row_facts import TargetFacts

Numbers = NDArray[np.float64]
MOST_WRONG, MOST_WRONG_TEXTS, THUMBNAILS = 500, 200, 24
"""Wrong rows that are stored, texts with wrong spans, and how many rows with a picture."""


@dataclass(frozen=True)
class RowView:
    """What a reader sees of a row."""

    name: str
    text: str | None = None
    thumbnail: str | None = None


Show = Callable[[int, bool], RowView]
"""Makes the view of the row with a number, and draws its thumbnail only if that is true."""
Spell = Callable[[int, set[Span]], list[str]]
"""Type and text of each span of the row with a number."""


class Scored(ABC):
    """What a classifier says of rows, with what is true."""

    activity: ClassVar[str] = "Classifying"
    settings: ClassVar[Mapping[str, Any]] = {}
    joined: ClassVar[Callable[[list[Any]], Any]] = np.concatenate
    """Joins the outputs of single rows into those of all rows."""

    @classmethod
    @abstractmethod
    def of(cls, objective: Classifier, rows: Sequence[Tokens], outputs: Any) -> Self:
        """Make it from a classifier's outputs for rows that have targets."""
        ...

    @property
    @abstractmethod
    def rows(self) -> dict[str, list[list[float]]]:
        """Each metric with its rows."""
        ...

    @property
    @abstractmethod
    def losses(self) -> dict[str, list[list[float]]]:
        """The loss of each row without weights of classes, and what else only an evaluation measures."""
        ...

    @property
    def baseline(self) -> str | None:
        """What the best constant answer would reach on these rows."""
        return None

    @abstractmethod
    def answers(self, spell: Spell, *, true: bool = False) -> list[str]:
        """What is predicted for each row, or what is `true`."""
        ...

    @abstractmethod
    def details(self, show: Show, spell: Spell) -> dict[str, Any]:
        """The field of an evaluation's scores that has them."""
        ...

    @staticmethod
    def target_bytes(row: Tokens) -> bytes:
        """What a row's hash covers beside its ids: the target of a whole row, and its pixels."""
        pixels = b"" if row.image is None else np.ascontiguousarray(row.image).tobytes()
        return np.asarray([row.target], "<f8").tobytes() + pixels


@dataclass(frozen=True)
class ScoredClasses(Scored):
    targets: TargetFacts
    outputs: Numbers
    """Probabilities (N, C) of the classes, or numbers (N, 1)."""
    actual: list[float]

    @classmethod
    def of(cls, objective: Classifier, rows: Sequence[Tokens], outputs: Any) -> Self:
        return cls(objective.targets, outputs, list(map(one_target, rows)))

    @property
    def predicted(self) -> list[float]:
        """Numbers of the likeliest classes, or the predicted numbers."""
        return (self.outputs.argmax(1) if self.targets.classes else self.outputs[:, 0]).tolist()

    @property
    def calibration(self) -> list[list[float]]:
        """Rows for the calibration error of classes: the probability of the predicted class, and whether it is
        right."""
        hits = zip(self.outputs.max(1).tolist(), self.predicted, self.actual, strict=True)
        return [[confidence, float(one == other)] for confidence, one, other in hits]

    @property
    def rows(self) -> dict[str, list[list[float]]]:
        return metric_rows(self.targets, self.predicted, self.actual)

    @property
    def losses(self) -> dict[str, list[list[float]]]:
        """Nats, or squared errors."""
        if not self.targets.classes:
            return {"mean_squared_error": means((self.outputs[:, 0] - np.asarray(self.actual)) ** 2)}
        shares = self.outputs[np.arange(len(self.actual)), np.asarray(self.actual, dtype=np.int64)]
        return {"calibration_error": self.calibration, "cross_entropy": means(-np.log(np.maximum(shares, 1e-300)))}

    @property
    def baseline(self) -> str | None:
        if not self.targets.classes:
            return None
        number, count = Counter(self.actual).most_common(1)[0]
        name, share = one_line(self.targets.classes[int(number)]), count / len(self.actual)
        return f'the most frequent class, "{name}", is that of {share:.1%} of these rows'

    def answers(self, spell: Spell, *, true: bool = False) -> list[str]:
        classes = self.targets.classes
        return [classes[int(one)] if classes else f"{one:.4g}" for one in (self.actual if true else self.predicted)]

    def details(self, show: Show, spell: Spell) -> dict[str, Any]:
        return {"classification": class_details(self, show)} if self.targets.classes else {}


def metric_rows(
    targets: TargetFacts, predicted: Sequence[float], actual: Sequence[float]
) -> dict[str, list[list[float]]]:
    """Each metric with its rows. Classes are given by their numbers."""
    if not targets.classes:
        ranks = _ranks(np.asarray(predicted)), _ranks(np.asarray(actual))
        return {
            "pearson": [number_row(*pair) for pair in zip(predicted, actual, strict=True)],
            "spearman": [number_row(*pair) for pair in zip(*(one.tolist() for one in ranks), strict=True)],
        }
    pairs = [[float(one), float(other)] for one, other in zip(predicted, actual, strict=True)]
    hits = means(one == other for one, other in pairs)
    return {"accuracy": hits, "balanced_accuracy": pairs, "f1": pairs, "matthews": pairs}


def one_target(row: Tokens) -> float:
    """Return the target of a row that has a single one: the number of its class, or its value."""
    assert isinstance(row.target, (int, float)), "the row has one class or value"
    return float(row.target)


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 0 on, divided by their number, so that sums stay small. Equal values share their mean rank. Values
    that all agree within a millionth are equal, as for Pearson's correlation: they differ by rounding alone."""
    if values.size and np.ptp(values) <= 1e-6 * np.abs(values).max():
        values = np.zeros_like(values)
    order = np.sort(values)
    first, last = np.searchsorted(order, values, "left"), np.searchsorted(order, values, "right") - 1
    return (first + last) / 2 / max(1, len(values))


def class_details(scored: ScoredClasses, show: Show) -> ClassDetails:
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


def _wrong(scored: ScoredClasses, pairs: np.ndarray, confidences: np.ndarray, show: Show) -> list[WrongRow]:
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


class ScoredSets(Scored):
    """Where a row has any number of labels, or of spans."""

    what: ClassVar[Literal["labels", "spans"]]
    most_wrong: ClassVar[int] = MOST_WRONG

    @property
    @abstractmethod
    def types(self) -> tuple[Sequence[str], Sums]:
        """The names that occur, and the sums (N, 3 T) of each row."""
        ...

    @property
    @abstractmethod
    def right(self) -> Sequence[bool]:
        """Whether each row is right as a whole."""
        ...

    @abstractmethod
    def differences(self, number: int, spell: Spell) -> tuple[list[str], list[str]]:
        """What the row with this number misses, and what is wrong there."""
        ...

    def details(self, show: Show, spell: Spell) -> dict[str, Any]:
        wrong, listed = [at for at, right in enumerate(self.right) if not right], list[WrongSet]()
        for at in wrong[: self.most_wrong]:
            (missed, more), view = self.differences(at, spell), show(at, False)
            listed.append(WrongSet(name=view.name, text=view.text or "", missed=missed, wrong=more))
        types, rows = figures_of(*self.types), len(self.right)
        return {"sets": SetDetails(of=self.what, types=types, rows=rows, wrong_rows=len(wrong), wrong=listed)}


@dataclass(frozen=True)
class ScoredLabels(ScoredSets):
    """A classifier's probabilities (N, C) for N rows, and which labels they have (N, C)."""

    what = "labels"
    settings: ClassVar[Mapping[str, Any]] = {"threshold": THRESHOLD}
    classes: tuple[str, ...]
    outputs: NDArray[np.float64]
    actual: NDArray[np.bool_]

    @classmethod
    def of(cls, objective: Classifier, rows: Sequence[Tokens], outputs: Any) -> Self:
        actual = np.array([row.target for row in rows], np.float64).reshape(len(rows), -1) > 0
        return cls(objective.targets.classes, outputs, actual)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        return self.outputs > THRESHOLD

    @property
    def types(self) -> tuple[Sequence[str], Sums]:
        parts = np.stack((self.predicted & self.actual, self.predicted, self.actual), -1)
        return self.classes, parts.reshape(len(self.actual), -1).astype(np.float64)

    @property
    def right(self) -> Sequence[bool]:
        return (self.predicted == self.actual).all(1).tolist()

    @property
    def rows(self) -> dict[str, list[list[float]]]:
        table = self.types[1]
        micro = table.reshape(len(table), -1, 3).sum(1)
        return {"micro_f1": micro.tolist(), "f1": table.tolist(), "exact_match": means(self.right)}

    @property
    def losses(self) -> dict[str, list[list[float]]]:
        return {}

    @property
    def baseline(self) -> str | None:
        if not self.actual.any():
            return None
        labels, score = best_constant(self.actual)
        names, exact = ", ".join(map(one_line, self.names(labels))), (self.actual == labels).all(1).mean()
        return (
            f'the best constant answer, "{names}", has a micro F1 of {score:.3f} on these rows, and {exact:.1%} of '
            "them have just these labels"
        )

    def answers(self, spell: Spell, *, true: bool = False) -> list[str]:
        return [", ".join(map(one_line, self.names(row))) for row in (self.actual if true else self.predicted)]

    def differences(self, number: int, spell: Spell) -> tuple[list[str], list[str]]:
        predicted, actual = self.predicted[number], self.actual[number]
        return self.names(actual & ~predicted), self.names(predicted & ~actual)

    def names(self, which: NDArray[np.bool_]) -> list[str]:
        return [name for name, one in zip(self.classes, which.tolist(), strict=True) if one]


def best_constant(actual: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """The labels (C,) by which rows (N, C) with a label at least have the highest micro F1 if every row is given the
    same ones, and this F1: of k labels the k most frequent ones are right most often."""
    counts = actual.sum(0)
    order = np.argsort(-counts, kind="stable")
    scores = 2 * np.cumsum(counts[order]) / (len(actual) * np.arange(1, len(counts) + 1) + counts.sum())
    most = int(np.argmax(scores))
    return np.isin(np.arange(len(counts)), order[: most + 1]), float(scores[most])


@dataclass(frozen=True)
class ScoredTags(ScoredSets):
    """What a token classifier says of N texts, and what is true."""

    what = "spans"
    most_wrong = MOST_WRONG_TEXTS
    activity = "Tagging"
    joined = list
    targets: TargetFacts
    shares: list[Sums]
    """For each text, the probabilities (W, C) of C tags for its W words."""
    actual: list[NDArray[np.int64]]
    """For each text, the numbers (W,) of the true tags of its W words."""

    @classmethod
    def of(cls, objective: Classifier, rows: Sequence[Tokens], outputs: Any) -> Self:
        actual = [np.asarray(row.tags, np.int64)[np.asarray(row.loss_mask, bool)] for row in rows]
        return cls(objective.targets, outputs, actual)

    @property
    def pairs(self) -> list[tuple[set[Span], set[Span]]]:
        """Predicted and true spans of each text, by the numbers of its words."""
        return [
            (self._spans(row.argmax(1)), self._spans(true)) for row, true in zip(self.shares, self.actual, strict=True)
        ]

    def _spans(self, numbers: NDArray[np.int64]) -> set[Span]:
        return set(spans_of([self.targets.classes[number] for number in numbers.tolist()]))

    @property
    def right(self) -> Sequence[bool]:
        return [predicted == actual for predicted, actual in self.pairs]

    @property
    def rows(self) -> dict[str, list[list[float]]]:
        spans = [_sums(predicted, actual) for predicted, actual in self.pairs]
        hits = [
            [float((row.argmax(1) == true).sum()), float(len(true))]
            for row, true in zip(self.shares, self.actual, strict=True)
        ]
        return {"span_f1": spans, "span_precision": spans, "span_recall": spans, "token_accuracy": hits}

    @property
    def losses(self) -> dict[str, list[list[float]]]:
        """The cross-entropy of the tags as [nats, words] for each text."""
        nats = [
            [float(-np.log(np.maximum(row[np.arange(len(true)), true], 1e-300)).sum()), float(len(true))]
            for row, true in zip(self.shares, self.actual, strict=True)
        ]
        return {"token_cross_entropy": nats}

    @property
    def types(self) -> tuple[Sequence[str], Sums]:
        names = sorted({span.label for pair in self.pairs for spans in pair for span in spans})
        table = [
            [number for name in names for number in _sums(*(_of_type(spans, name) for spans in pair))]
            for pair in self.pairs
        ]
        return names, np.asarray(table, np.float64).reshape(len(self.pairs), 3 * len(names))

    def answers(self, spell: Spell, *, true: bool = False) -> list[str]:
        return [", ".join(spell(at, pair[true])) for at, pair in enumerate(self.pairs)]

    def differences(self, number: int, spell: Spell) -> tuple[list[str], list[str]]:
        predicted, actual = self._spans(self.shares[number].argmax(1)), self._spans(self.actual[number])
        return spell(number, actual - predicted), spell(number, predicted - actual)

    @staticmethod
    def target_bytes(row: Tokens) -> bytes:
        """Which tokens begin a learned word, and their tags."""
        return np.asarray([row.loss_mask, row.tags], "<i8").tobytes()


def _of_type(spans: set[Span], name: str) -> set[Span]:
    return {one for one in spans if one.label == name}


def _sums(predicted: set[Span], actual: set[Span]) -> list[float]:
    return [float(len(predicted & actual)), float(len(predicted)), float(len(actual))]


FORMS: Mapping[str, type[Scored]] = {"one": ScoredClasses, "several": ScoredLabels, "tags": ScoredTags}
"""By the form of the targets."""


def score_rows(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None,
    outputs: Outputs | None = None,
) -> Scored:  # fmt: skip
    """Run the classifier over rows that have targets; `done` is told how many there are so far."""
    values = (outputs or objective.outputs_for)(module, rows, done)
    return FORMS[objective.targets.form].of(objective, rows, values)
