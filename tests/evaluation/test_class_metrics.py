"""A classifier's metrics by hand: ranks of ties, and rows that give the values."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.evaluation.class_metrics import metric_rows
from rankwise.evaluation.metrics import METRICS
from rankwise.runs.data_report import TargetFacts

NUMBERS = TargetFacts(low=0.0, high=5.0)
CLASSES = TargetFacts(classes=("a", "b", "c"), counts=(1, 1, 1))


def value(metric: str, targets: TargetFacts, predicted: list[float], actual: list[float]) -> float:
    return float(METRICS[metric].of(np.asarray(metric_rows(targets, predicted, actual)[metric]).sum(0)))


def test_equal_values_share_their_mean_rank():
    predicted, actual = [1.0, 1.0, 1.0, 2.0, 9.0], [3.0, 1.0, 2.0, 4.0, 5.0]
    expected = np.corrcoef([1, 1, 1, 3, 4], [2, 0, 1, 3, 4])[0, 1]  # the first three share the ranks 0, 1 and 2
    assert value("spearman", NUMBERS, predicted, actual) == pytest.approx(expected)
    assert value("pearson", NUMBERS, predicted, actual) == pytest.approx(np.corrcoef(predicted, actual)[0, 1])


def test_accuracy_macro_f1_and_matthews_of_three_classes():
    predicted, actual = [0, 0, 1, 1, 2, 0], [0, 1, 1, 1, 2, 2]
    assert value("accuracy", CLASSES, predicted, actual) == pytest.approx(4 / 6)
    assert value("f1", CLASSES, predicted, actual) == pytest.approx((2 / 4 + 4 / 5 + 2 / 3) / 3)
    centred = [np.eye(3)[numbers] - np.eye(3)[numbers].mean(0) for numbers in (predicted, actual)]
    expected = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert value("matthews", CLASSES, predicted, actual) == pytest.approx(expected)
