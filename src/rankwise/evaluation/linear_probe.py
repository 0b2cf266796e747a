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
MULTIPLES = np.logspace(-1, 1.5, 51)


def probe_hits(gram: Numbers, labels: Sequence[int]) -> list[bool]:
    """Tell for each image whether the probe predicts its class. `gram` (N, N) has the features' inner products."""
    numbers, classes = np.asarray(labels), np.unique(labels)
    folds = _folds(numbers)
    targets = (numbers[:, None] == classes).astype(np.float64)
    predicted = np.zeros(len(numbers), np.int64)
    for fold in range(FOLDS):
        fitted, left_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        values, _ = fit_and_predict(gram[np.ix_(fitted, fitted)], gram[np.ix_(left_out, fitted)], targets[fitted])
        predicted[left_out] = classes[values.argmax(1)]
    return (predicted == numbers).tolist()


def _folds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the images of each class in a random order that depends on the labels alone."""
    folds, generator = np.zeros(len(labels), np.int64), np.random.default_rng(SEED)
    for number in np.unique(labels):
        own = np.flatnonzero(labels == number)
        folds[generator.permutation(own)] = np.arange(len(own)) % FOLDS
    return folds


def fit_and_predict(among: Numbers, between: Numbers, targets: Numbers) -> tuple[Numbers, Numbers]:
    """Predict others, and each fitted row by a probe without it. `among` holds the inner products of the fitted rows,
    `between` those of the others with them."""
    rows, middle, mean = among.mean(1), among.mean(), targets.mean(0)
    centred = among - rows - rows[:, None] + middle
    lengths, vectors = np.linalg.eigh(centred)
    lengths = np.maximum(lengths, 0)
    turned = vectors.T @ (targets - mean)
    penalties = PENALTIES * max(float(lengths.sum()) / len(among), 1e-300)
    best = min(penalties, key=lambda penalty: float((_left_out(lengths, penalty, vectors, turned) ** 2).sum()))
    weights = vectors @ (turned / (lengths + best)[:, None])
    without = targets - _left_out(lengths, best, vectors, turned)
    return (between - rows - between.mean(1)[:, None] + middle) @ weights + mean, without


def probabilities(values: Numbers, without: Numbers, labels: NDArray[np.int64], shares: Numbers) -> Numbers:
    """Turn a probe's values into probabilities: the frequencies (C,) of the classes, times e to a multiple of what the
    probe says beyond them. It is the multiple, or 0, under which the fitted rows, each predicted without itself, are
    likeliest."""
    rows, mean = np.arange(len(labels)), np.bincount(labels, minlength=len(shares)) / len(labels)

    def logs(of: Numbers, multiple: float) -> Numbers:
        return _normalised(np.log(shares) + multiple * (of - mean))

    best = max((0.0, *MULTIPLES.tolist()), key=lambda multiple: float(logs(without, multiple)[rows, labels].sum()))
    return np.exp(logs(values, best))


def _normalised(values: Numbers) -> Numbers:
    shifted = values - values.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _left_out(lengths: Numbers, penalty: float, vectors: Numbers, turned: Numbers) -> Numbers:
    """The error of each fitted row under a probe, with its mean, that was fitted without it. The constant vector, which
    centring made an eigenvector of length 0, belongs to the mean and not to the penalised weights."""
    weights = vectors @ (turned / (lengths + penalty)[:, None])
    own = (vectors**2 / (lengths + penalty)).sum(1) - 1 / (penalty * len(lengths))
    return weights / own[:, None]
