"""Calibration: whether a classifier that is 80 % sure is right 80 % of the time.

    error = sum over bins of |confidence of its items - number of hits among them| / number of all items

The confidence of an item is the probability of its predicted class, and the bins are fifteen intervals of equal width
(Guo et al. 2017: expected calibration error). The stored row of an item is [confidence, hit], and its sums are one gap
for each bin, so a bootstrap sample of items needs no probabilities. Chance alone makes the error of a few items larger
than 0; `error_of_calibrated` is how large.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]
BINS = 15
EDGES = np.linspace(0.0, 1.0, BINS + 1)
DRAWS, SEED = 1000, 0


def bins_of(confidences: Sums) -> NDArray[np.int64]:
    """Return the number of each confidence's bin; a bin contains its upper edge."""
    return np.clip(np.searchsorted(EDGES, confidences, "left") - 1, 0, BINS - 1)


def calibration_table(rows: Sums) -> Sums:
    """Turn rows [confidence, hit] into sums (N, 1 + BINS): 1, and the item's gap in the column of its bin."""
    table = np.zeros((len(rows), 1 + BINS))
    table[:, 0] = 1.0
    table[np.arange(len(rows)), 1 + bins_of(rows[:, 0])] = rows[:, 0] - rows[:, 1]
    return table


def calibration_error(sums: Sums) -> Sums:
    return np.abs(sums[..., 1:]).sum(-1) / np.maximum(sums[..., 0], 1)


def error_of_calibrated(confidences: Sums) -> float:
    """Compute the mean error of a perfectly calibrated classifier that is as confident on as many items."""
    items, generator, errors = len(confidences), np.random.default_rng(SEED), list[float]()
    for _ in range(DRAWS):
        rows = np.stack((confidences, (generator.random(items) < confidences).astype(np.float64)), 1)
        errors.append(float(calibration_error(calibration_table(rows).sum(0))))
    return float(np.mean(errors))
