"""A classifier's metrics by hand: ranks of ties, rows that give the values, and laws of calibration."""

from __future__ import annotations

import numpy as np
import pytest

from kit.classifiers import class_row
from rankwise.evaluation.class_metrics import metric_rows
from rankwise.evaluation.intervals import difference, with_interval
from rankwise.evaluation.metrics import METRICS, calibration_table, class_table, error_of_calibrated
from rankwise.runs.row_facts import TargetFacts

NUMBERS = TargetFacts(low=0.0, high=5.0)
CLASSES = TargetFacts(classes=("a", "b", "c"), counts=(1, 1, 1))


def value(metric: str, targets: TargetFacts, predicted: list[float], actual: list[float]) -> float:
    return METRICS[metric].value(metric_rows(targets, predicted, actual)[metric])


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


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur():
    predicted, actual = [0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 1]
    assert value("balanced_accuracy", CLASSES, predicted, actual) == pytest.approx((3 / 3 + 1 / 3) / 2)
    assert value("balanced_accuracy", CLASSES, actual, actual) == 1.0


def random_pairs(seed: int, items: int, classes: int) -> list[list[float]]:
    return np.random.default_rng(seed).integers(0, classes, (items, 2)).astype(float).tolist()


@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1", "matthews"])
def test_pairs_give_what_the_sums_of_all_classes_give(metric):
    pairs = random_pairs(0, 60, 5)
    sums = np.array([class_row(int(predicted), int(actual), 9) for predicted, actual in pairs])
    assert METRICS[metric].value(pairs) == pytest.approx(METRICS[metric].of(sums.sum(0)), abs=1e-15)
    assert class_table(np.array(pairs)).shape == (60, 15), "classes that never occur need no column"


@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1", "matthews"])
def test_the_difference_of_two_classifiers_counts_each_class_of_both(metric):
    """One of them never predicts the class 3, so each alone would have other columns."""
    actual = [row[1] for row in random_pairs(1, 80, 4)]
    a, b = ([[float(int(one) % classes), one] for one in actual] for classes in (3, 4))
    between = difference(METRICS[metric], a, b)
    assert (between.a, between.b) == (METRICS[metric].value(a), METRICS[metric].value(b))
    assert between.b == 1.0 and between.verdict == "better"


def naive_calibration_error(confidences: np.ndarray, hits: np.ndarray) -> float:
    error = 0.0
    for low in range(15):
        inside = (confidences > low / 15) & (confidences <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidences[inside].mean() - hits[inside].mean())
    return error


def test_the_calibration_error_by_its_definition():
    generator = np.random.default_rng(2)
    confidences = np.concatenate([generator.random(200), [0.0, 1.0, 1 / 15, 0.2]])
    hits = generator.random(len(confidences)) < 0.6
    rows = np.stack((confidences, hits), 1)
    assert METRICS["calibration_error"].value(rows.tolist()) == pytest.approx(naive_calibration_error(*rows.T))
    sure_and_wrong, sure_and_right = [[1.0, 0.0]] * 8, [[1.0, 1.0]] * 8
    assert METRICS["calibration_error"].value(sure_and_wrong) == 1.0
    assert METRICS["calibration_error"].value(sure_and_right) == 0.0
    between = difference(METRICS["calibration_error"], sure_and_wrong, sure_and_right)
    assert between.verdict == "better", "a smaller error is better"


def test_the_interval_of_the_calibration_error_contains_that_of_many_items():
    """Too sure by 0.2: the true error is 0.2, and 95 % intervals contain it nearly always."""
    generator, contained = np.random.default_rng(3), 0
    for _ in range(40):
        confidences = 0.6 + 0.39 * generator.random(300)
        hits = generator.random(300) < confidences - 0.2
        one = with_interval(METRICS["calibration_error"], np.stack((confidences, hits), 1).tolist())
        contained += one.low <= 0.2 <= one.high
    assert contained >= 34


def test_a_calibrated_classifier_has_the_error_that_chance_gives():
    generator = np.random.default_rng(4)
    confidences = 0.5 + generator.random(120) / 2
    errors = [naive_calibration_error(confidences, generator.random(120) < confidences) for _ in range(400)]
    assert error_of_calibrated(confidences) == pytest.approx(np.mean(errors), rel=0.05)
    assert error_of_calibrated(np.tile(confidences, 100)) < error_of_calibrated(confidences) / 5
    assert calibration_table(np.array([[1.0, 1.0]]))[0, -1] == 0.0
