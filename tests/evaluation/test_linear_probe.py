"""The probe's leave-one-out errors are those of probes that were fitted without the row, its mean included."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.evaluation.linear_probe import fit_and_predict, probabilities


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
    monkeypatch.setattr("rankwise.evaluation.linear_probe.PENALTIES", np.array([0.3]))
    values, without = fit_and_predict(features @ features.T, features @ features.T, targets)
    np.testing.assert_allclose(values, ridge(features, targets, features, 0.3 * size), atol=1e-9)
    for row in range(20):
        rest = np.arange(20) != row
        one = ridge(features[rest], targets[rest], features[row], 0.3 * size)
        np.testing.assert_allclose(without[row], one, atol=1e-9)


def test_features_that_say_nothing_leave_the_frequencies_and_others_do_not():
    draw = np.random.default_rng(1)
    labels = draw.integers(2, size=200)
    shares = np.array([0.4, 0.6])
    noise, telling = draw.normal(size=(200, 8)), draw.normal(size=(200, 8)) + labels[:, None]
    for features, said in ((noise, False), (telling, True)):
        gram = features @ features.T
        made = probabilities(*fit_and_predict(gram, gram, np.eye(2)[labels]), labels, shares)
        nats = -np.log(made[np.arange(200), labels]).mean()
        assert made.sum(1) == pytest.approx(np.ones(200))
        assert (nats < 0.5) == said
        assert said or abs(nats - -np.log(shares[labels]).mean()) < 0.05
