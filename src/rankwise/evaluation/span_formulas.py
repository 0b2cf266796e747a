"""Metrics of spans, from how many are right, predicted and true.

    precision = right / predicted      recall = right / actual      F1 = 2 right / (predicted + actual)

The sums of a text are [right, predicted, actual], over all types together or for each type.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


def span_f1(sums: Sums) -> Sums:
    return _share(2 * sums[..., ::3], sums[..., 1::3] + sums[..., 2::3])[..., 0]


def span_precision(sums: Sums) -> Sums:
    return _share(sums[..., ::3], sums[..., 1::3])[..., 0]


def span_recall(sums: Sums) -> Sums:
    return _share(sums[..., ::3], sums[..., 2::3])[..., 0]


def figures_of_types(sums: Sums) -> Sums:
    """(…, 3 T) sums of T types to their precisions, recalls and F1 (…, 3 T), nan where there is nothing to divide."""
    right, predicted, actual = (sums[..., part::3] for part in range(3))
    parts = ((right, predicted), (right, actual), (2 * right, predicted + actual))
    return np.concatenate([_share(above, below, np.nan) for above, below in parts], -1)


def _share(above: Sums, below: Sums, nothing: float = 0.0) -> Sums:
    return np.where(below > 0, above / np.maximum(below, 1), nothing)
