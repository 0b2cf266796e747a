"""Random orders of rows, each a function of its seeds alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def shuffled(rows: int, *seeds: int) -> np.ndarray:
    """The numbers 0, 1, 2, … of so many rows in random order, (rows,) int64. An array that is shared: do not change
    it."""
    return np.random.default_rng(seeds).permutation(rows)
