"""A linear probe: how well a linear map from a model's features tells classes apart that the model was not trained on.

    W = argmin over W of sum over images |W (x - mean) + mean(y) - y|^2 + penalty |W|^2,     y one-hot

Each image is predicted by a probe that was fitted without it, in five folds with equal shares of every class. The
penalty is the one with the least leave-one-out error on the fitted images. Features enter only as inner products,

    K = X X^T,      alpha = (K + penalty)^-1 (Y - mean),      prediction = K alpha + mean,

and penalties are relative to the size of K, so rotating or scaling all features changes no prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
FOLDS, SEED = 5, 0
PENALTIES = np.logspace(-5, 2, 15)
"""Relative to the mean squared length of a centred feature vector."""


def probe_hits(gram: Numbers, labels: Sequence[int]) -> list[bool]:
    """Tell for each image whether the probe predicts its class. `gram` (N, N) has the features' inner products."""
    numbers, classes = np.asarray(labels), np.unique(labels)
    folds = _folds(numbers)
    targets = (numbers[:, None] == classes).astype(np.float64)
    predicted = np.zeros(len(numbers), np.int64)
    for fold in range(FOLDS):
        fitted, left_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        values = _fit_and_predict(gram[np.ix_(fitted, fitted)], gram[np.ix_(left_out, fitted)], targets[fitted])
        predicted[left_out] = classes[values.argmax(1)]
    return (predicted == numbers).tolist()


def _folds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the images of each class in a random order that depends on the labels alone."""
    folds, generator = np.zeros(len(labels), np.int64), np.random.default_rng(SEED)
    for number in np.unique(labels):
        own = np.flatnonzero(labels == number)
        folds[generator.permutation(own)] = np.arange(len(own)) % FOLDS
    return folds


def _fit_and_predict(among: Numbers, between: Numbers, targets: Numbers) -> Numbers:
    """`among` holds the inner products of the fitted images, `between` those of the others with them."""
    rows, middle, mean = among.mean(1), among.mean(), targets.mean(0)
    centred = among - rows - rows[:, None] + middle
    lengths, vectors = np.linalg.eigh(centred)
    lengths = np.maximum(lengths, 0)
    turned = vectors.T @ (targets - mean)
    penalties = PENALTIES * max(float(lengths.sum()) / len(among), 1e-300)
    best = min(penalties, key=lambda penalty: _left_out_error(lengths + penalty, vectors, turned))
    weights = vectors @ (turned / (lengths + best)[:, None])
    return (between - rows - between.mean(1)[:, None] + middle) @ weights + mean


def _left_out_error(lengths: Numbers, vectors: Numbers, turned: Numbers) -> float:
    """Sum the squared errors of each fitted image under a probe fitted without it."""
    weights = vectors @ (turned / lengths[:, None])
    own = (vectors**2 / lengths).sum(1)
    return float(((weights / own[:, None]) ** 2).sum())
