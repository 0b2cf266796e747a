"""Laws of CKA and of the linear probe: what must not change them, what must, and how often their intervals hold."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.errors import EvaluationError
from rankwise.evaluation.feature_forgetting import (
    FOLDS,
    _folds,
    cka,
    cka_value,
    feature_forgetting,
    fit_and_predict,
    probe_hits,
)
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quality import feature_facts


def gram(features):
    centred = features - features.mean(0)
    return centred @ centred.T


def rotation(size, generator):
    return np.linalg.qr(generator.normal(size=(size, size)))[0]


def blobs(images, size, classes, apart, generator):
    """Features of classes around random centres; equally many of each."""
    labels = np.arange(images) % classes
    return apart * generator.normal(size=(classes, size))[labels] + generator.normal(size=(images, size)), labels


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_a_rotation_a_scale_and_a_shift_leave_features_as_similar_as_themselves(generator):
    x = generator.normal(size=(60, 12)) * np.linspace(0.2, 3, 12)
    moved = 7.0 * x @ rotation(12, generator) + generator.normal(size=12)
    whole = cka(gram(x), gram(moved))
    assert whole.value == pytest.approx(1, abs=1e-12) and whole.low == pytest.approx(1, abs=1e-12)
    y = x + generator.normal(size=x.shape)
    assert cka_value(gram(x), gram(y)) == pytest.approx(cka_value(gram(moved), gram(-3 * y @ rotation(12, generator))))
    assert cka_value(gram(x), gram(y)) < 0.95


def test_unrelated_features_have_no_similarity_on_average_although_the_usual_estimate_has_much(generator):
    values, usual = [], []
    for _ in range(60):
        k, l = (gram(generator.normal(size=(50, 80))) for _ in range(2))  # noqa: E741
        values.append(cka_value(k, l))
        usual.append((k * l).sum() / np.linalg.norm(k) / np.linalg.norm(l))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert np.mean(usual) == pytest.approx(80 / (80 + 50), abs=0.03)


def test_the_estimate_is_that_of_all_images_and_its_interval_contains_it(generator):
    """Y = X A + noise of a Gaussian X, whose CKA follows from the covariances."""
    scale = np.linspace(0.5, 2, 8)
    mix = generator.normal(size=(8, 6)) / 3
    across = np.diag(scale**2) @ mix
    theirs = mix.T @ np.diag(scale**2) @ mix + 0.5 * np.eye(6)
    true = (across**2).sum() / np.linalg.norm(scale**2) / np.linalg.norm(theirs)
    contained, values = 0, []
    for _ in range(60):
        x = generator.normal(size=(120, 8)) * scale
        one = cka(gram(x), gram(x @ mix + np.sqrt(0.5) * generator.normal(size=(120, 6))))
        contained += one.low <= true <= one.high
        values.append(one.value)
    assert np.mean(values) == pytest.approx(true, abs=0.02)
    assert contained >= 52


def test_features_that_are_all_the_same_are_similar_to_nothing(generator):
    assert cka_value(gram(np.ones((40, 3))), gram(generator.normal(size=(40, 3)))) == 0.0


def test_a_probe_depends_on_features_only_up_to_rotation_scale_and_shift(generator):
    x, labels = blobs(100, 10, 4, 0.7, generator)
    hits = probe_hits(gram(x), labels.tolist())
    moved = 100 * x @ rotation(10, generator) + 5
    assert probe_hits(gram(moved), labels.tolist()) == hits
    assert probe_hits(moved @ moved.T, labels.tolist()) == hits, "the probe takes away the mean by itself"
    assert 0.3 < np.mean(hits) < 0.95


def test_a_probe_is_ridge_regression_fitted_without_the_images_that_it_predicts(generator):
    x, labels = blobs(60, 5, 3, 1.0, generator)
    hits, folds = probe_hits(gram(x), labels.tolist()), _folds(labels)
    agreed = 0
    for fold in range(FOLDS):
        fitted, rest = folds != fold, folds == fold
        design = np.column_stack((np.ones(fitted.sum()), x[fitted]))
        weights = np.linalg.lstsq(design, np.eye(3)[labels[fitted]], rcond=None)[0]
        said = np.column_stack((np.ones(rest.sum()), x[rest])) @ weights
        agreed += (np.array(hits)[rest] == (said.argmax(1) == labels[rest])).sum()
    assert agreed >= 57, "few features and clear classes need hardly any penalty"


@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_of_noise_is_right_by_chance(classes, generator):
    hits = [np.mean(probe_hits(gram(generator.normal(size=(200, 300))), (np.arange(200) % classes).tolist()))
            for _ in range(6)]  # fmt: skip
    assert np.mean(hits) == pytest.approx(1 / classes, abs=0.06)


def test_every_class_has_its_share_in_every_fold():
    labels = np.array([0] * 23 + [1] * 7)
    for number, count in ((0, 23), (1, 7)):
        sizes = np.bincount(_folds(labels)[labels == number], minlength=FOLDS)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1


def measured(base, tuned, images, labels, batch=16):
    batches = [images[at : at + batch] for at in range(0, len(images), batch)]
    return feature_forgetting(base, tuned, batches, labels, ("a", "b", "c"), "other images")


def test_the_same_model_twice_has_forgotten_nothing(generator):
    images, labels = blobs(90, 20, 3, 0.8, generator)
    mix = generator.normal(size=(20, 8))
    one = measured(lambda x: x @ mix, lambda x: x @ mix, images, labels.tolist())
    assert one.cka.value == pytest.approx(1) and one.probe.a == one.probe.b
    assert one.probe.verdict == "cannot tell" and one.images == 90
    again = measured(lambda x: x @ mix, lambda x: x @ mix, images, labels.tolist(), batch=7)
    assert again.sha256 == one.sha256 and again.cka.value == pytest.approx(one.cka.value)


def test_a_model_that_lost_its_features_is_worse(generator):
    images, labels = blobs(240, 20, 3, 1.0, generator)
    lost = np.zeros((20, 8))
    lost[0, 0] = 1.0  # one number is left of twenty
    one = measured(lambda x: x @ rotation(20, np.random.default_rng(1)), lambda x: x @ lost, images, labels.tolist())
    assert one.cka.high < 0.7 and one.probe.verdict == "worse" and one.probe.b < one.probe.a
    lines = lines_of(feature_facts(one))
    assert "240 of other images" in lines[0] and lines[-1].endswith("worse")


def test_a_class_of_too_few_images_is_named(generator):
    with pytest.raises(EvaluationError, match='at least 5 images of each class, and there are 4 of "b"'):
        measured(lambda x: x, lambda x: x, generator.normal(size=(60, 4)), [0] * 30 + [1] * 4 + [2] * 26)


def test_without_labels_there_is_no_probe(generator):
    images, _ = blobs(50, 6, 2, 1.0, generator)
    one = measured(lambda x: x, lambda x: x + 1, images, None)
    assert one.probe is None and one.classes == ()
    assert len(lines_of(feature_facts(one))) == 2


@pytest.mark.parametrize(
    ("images", "labels", "spoil", "message"),
    [(39, None, False, "at least 40 images"), (60, 30, False, "30 labels"), (60, None, True, "not finite")],
)
def test_what_cannot_be_measured_is_refused(images, labels, spoil, message, generator):
    rows = generator.normal(size=(images, 4))
    base = (lambda x: x * np.inf) if spoil else (lambda x: x)
    with pytest.raises(EvaluationError, match=message):
        measured(base, lambda x: x, rows, None if labels is None else [0] * labels)


def ridge(features, targets, others, penalty):
    mean, middle = features.mean(0), targets.mean(0)
    gram = (features - mean) @ (features - mean).T
    weights = np.linalg.solve(gram + penalty * np.eye(len(features)), targets - middle)
    return (others - mean) @ (features - mean).T @ weights + middle


@pytest.mark.parametrize("width", [4, 50])
def test_each_fitted_row_is_predicted_by_a_probe_without_it(width, monkeypatch):
    draw = np.random.default_rng(0)
    features, targets = draw.normal(size=(20, width)) + 3, np.eye(3)[draw.integers(3, size=20)]
    centred = features - features.mean(0)
    size = float((centred**2).sum() / 20)
    monkeypatch.setattr("rankwise.evaluation.feature_forgetting.PENALTIES", np.array([0.3]))
    values, without = fit_and_predict(features @ features.T, features @ features.T, targets)
    np.testing.assert_allclose(values, ridge(features, targets, features, 0.3 * size), atol=1e-9)
    for row in range(20):
        rest = np.arange(20) != row
        one = ridge(features[rest], targets[rest], features[row], 0.3 * size)
        np.testing.assert_allclose(without[row], one, atol=1e-9)
