"""Metrics of classes, from how often each class was predicted, how often it was true, and how often both.

    recall(c) = right(c) / actual(c)      precision(c) = right(c) / predicted(c)
    F1(c) = 2 right(c) / (predicted(c) + actual(c))

The stored row of an item is the pair [predicted, actual] of class numbers, and its sums are [right, predicted, actual]
of each class that occurs. So a thousand classes take two numbers of a file for each item.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


def class_table(rows: Sums) -> Sums:
    """Turn pairs (N, 2) into sums (N, 3 C) of the C classes that occur; rows that are sums already stay."""
    if rows.shape[1] != 2:
        return rows
    classes, numbers = np.unique(rows, return_inverse=True)
    predicted, actual = numbers.reshape(rows.shape).T
    table, items = np.zeros((len(rows), 3 * len(classes))), np.arange(len(rows))
    table[items, 3 * predicted + 1] = table[items, 3 * actual + 2] = 1.0
    table[items, 3 * actual] = predicted == actual
    return table


def f1_of_classes(sums: Sums) -> Sums:
    """Compute F1 of each class (..., C), nan for a class that never occurs."""
    right, both = sums[..., ::3], sums[..., 1::3] + sums[..., 2::3]
    return np.where(both > 0, 2 * right / np.maximum(both, 1), np.nan)


def macro_f1(sums: Sums) -> Sums:
    """Average F1 over the classes that are predicted or true somewhere."""
    each = f1_of_classes(sums)
    return np.nansum(each, -1) / np.maximum((~np.isnan(each)).sum(-1), 1)


def balanced_accuracy(sums: Sums) -> Sums:
    """Average recall over the classes that are true somewhere."""
    right, actual = sums[..., ::3], sums[..., 2::3]
    return (right / np.maximum(actual, 1)).sum(-1) / np.maximum((actual > 0).sum(-1), 1)


def matthews(sums: Sums) -> Sums:
    """Compute the correlation of predicted and actual classes (Gorodkin 2004); 0 if one is constant."""
    right, predicted, actual = (sums[..., part::3] for part in range(3))
    n = actual.sum(-1)
    shared = right.sum(-1) * n - (predicted * actual).sum(-1)
    spread = (n**2 - (predicted**2).sum(-1)) * (n**2 - (actual**2).sum(-1))
    return np.where(spread > 0, shared / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)
