"""A token classifier's predictions to the rows of its metrics: of each text [right, predicted, actual] spans.

A span is right where its first word, its last word and its type all are. Words that were cut, or that have no first
token of their own, belong to no span here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.evaluation.span_formulas import Sums
from rankwise.inference.classify import Done, Outputs
from rankwise.inference.tagging import tag_probabilities
from rankwise.objectives.objective import Classifier
from rankwise.runs.row_facts import TargetFacts
from rankwise.text.tagged import Span, spans_of
from rankwise.text.tokenize import Tokens


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
    outputs: Outputs = tag_probabilities,
) -> ScoredTags:  # fmt: skip
    """Run the classifier over tagged rows; `done` is told how many there are so far."""
    actual = [np.asarray(row.tags, np.int64)[np.asarray(row.loss_mask, bool)] for row in rows]
    return ScoredTags(objective.targets, outputs(objective, module, rows, done), actual)
