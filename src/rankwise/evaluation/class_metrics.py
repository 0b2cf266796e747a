"""Metrics of a classifier: its predictions and the targets to one row of sums for each item (metrics.py).

classes    accuracy, balanced accuracy, macro F1, Matthews correlation
numbers    Pearson's correlation, and Spearman's, which is Pearson's of the ranks
labels     micro and macro F1, and the share of rows that are right as a whole
tags       of each text [right, predicted, actual] spans, and the share of right tags

A span is right where its first word, its last word and its type all are. Words that were cut, or that have no first
token of their own, belong to no span here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.evaluation.metrics import Sums, means, number_row
from rankwise.objectives.objective import Classifier
from rankwise.objectives.predictions import THRESHOLD, Done, Outputs
from rankwise.rows.text.example import Span, spans_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

Numbers = NDArray[np.float64]


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


@dataclass(frozen=True)
class Scored:
    """A classifier's outputs for labelled rows, with what it predicts and what is true."""

    targets: TargetFacts
    outputs: Numbers
    """Probabilities (N, C) of the classes, or numbers (N, 1)."""
    actual: list[float]

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


def score_rows(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None,
    outputs: Outputs | None = None,
) -> Scored:  # fmt: skip
    """Run the classifier over rows that have targets; `done` is told how many there are so far."""
    targets = [one_target(row) for row in rows]
    return Scored(objective.targets, (outputs or objective.outputs_for)(module, rows, done), targets)


def one_target(row: Tokens) -> float:
    """Of a row that has one class or value."""
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


@dataclass(frozen=True)
class ScoredTags:
    """What a token classifier says of N texts, and what is true."""

    targets: TargetFacts
    shares: list[Sums]
    """Of each text (W, C): probabilities of C tags for W words."""
    actual: list[NDArray[np.int64]]
    """Of each text (W,): numbers of the true tags."""

    @property
    def pairs(self) -> list[tuple[set[Span], set[Span]]]:
        """Predicted and true spans of each text, by the numbers of its words."""
        return [
            (self._spans(row.argmax(1)), self._spans(true)) for row, true in zip(self.shares, self.actual, strict=True)
        ]

    def _spans(self, numbers: NDArray[np.int64]) -> set[Span]:
        return set(spans_of([self.targets.classes[number] for number in numbers.tolist()]))

    @property
    def rows(self) -> dict[str, list[list[float]]]:
        """Each metric with its rows, one for each text."""
        spans = [_sums(predicted, actual) for predicted, actual in self.pairs]
        hits = [
            [float((row.argmax(1) == true).sum()), float(len(true))]
            for row, true in zip(self.shares, self.actual, strict=True)
        ]
        return {"span_f1": spans, "span_precision": spans, "span_recall": spans, "token_accuracy": hits}

    @property
    def losses(self) -> list[list[float]]:
        """Of each text: nats without weights of classes, and words."""
        return [
            [float(-np.log(np.maximum(row[np.arange(len(true)), true], 1e-300)).sum()), float(len(true))]
            for row, true in zip(self.shares, self.actual, strict=True)
        ]

    @property
    def types(self) -> tuple[list[str], Sums]:
        """The types of span that occur, and the sums (N, 3 T) of each text."""
        names = sorted({span.label for pair in self.pairs for spans in pair for span in spans})
        table = [
            [number for name in names for number in _sums(*(_of_type(spans, name) for spans in pair))]
            for pair in self.pairs
        ]
        return names, np.asarray(table, np.float64).reshape(len(self.pairs), 3 * len(names))


def _of_type(spans: set[Span], name: str) -> set[Span]:
    return {one for one in spans if one.label == name}


def _sums(predicted: set[Span], actual: set[Span]) -> list[float]:
    return [float(len(predicted & actual)), float(len(predicted)), float(len(actual))]


def score_tags(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None,
    outputs: Outputs | None = None,
) -> ScoredTags:  # fmt: skip
    """Run the classifier over tagged rows; `done` is told how many there are so far."""
    actual = [np.asarray(row.tags, np.int64)[np.asarray(row.loss_mask, bool)] for row in rows]
    return ScoredTags(objective.targets, (outputs or objective.outputs_for)(module, rows, done), actual)


@dataclass(frozen=True)
class ScoredLabels:
    """A classifier's probabilities (N, C) for N rows, and which labels they have (N, C)."""

    classes: tuple[str, ...]
    outputs: NDArray[np.float64]
    actual: NDArray[np.bool_]

    @property
    def predicted(self) -> NDArray[np.bool_]:
        return self.outputs > THRESHOLD

    @property
    def table(self) -> NDArray[np.float64]:
        """(N, 3 C) sums of each label."""
        parts = np.stack((self.predicted & self.actual, self.predicted, self.actual), -1)
        return parts.reshape(len(self.actual), -1).astype(np.float64)

    @property
    def rows(self) -> dict[str, list[list[float]]]:
        """Each metric with its rows."""
        table = self.table
        micro = table.reshape(len(table), -1, 3).sum(1)
        exact = (self.predicted == self.actual).all(1)
        return {
            "micro_f1": micro.tolist(), "f1": table.tolist(), "exact_match": means(exact)
        }  # fmt: skip

    def names(self, which: NDArray[np.bool_]) -> list[str]:
        return [name for name, one in zip(self.classes, which.tolist(), strict=True) if one]


def score_labels(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None,
    outputs: Outputs | None = None,
) -> ScoredLabels:  # fmt: skip
    """Run the classifier over labelled rows; `done` is told how many there are so far."""
    actual = np.array([row.target for row in rows], np.float64).reshape(len(rows), -1) > 0
    return ScoredLabels(objective.targets.classes, (outputs or objective.outputs_for)(module, rows, done), actual)


def best_constant(actual: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """The labels (C,) by which rows (N, C) with a label at least have the highest micro F1 if every row is given the
    same ones, and this F1: of k labels the k most frequent ones are right most often."""
    counts = actual.sum(0)
    order = np.argsort(-counts, kind="stable")
    scores = 2 * np.cumsum(counts[order]) / (len(actual) * np.arange(1, len(counts) + 1) + counts.sum())
    most = int(np.argmax(scores))
    return np.isin(np.arange(len(counts)), order[: most + 1]), float(scores[most])
