"""How many examples hypothesis draws: all that a law is worth, or an eighth of them in the inner loop."""

from __future__ import annotations

import os

FAST = os.environ.get("HYPOTHESIS_PROFILE") == "fast"


def draws(count: int) -> int:
    """The number of examples to draw for a law that is worth `count`."""
    return max(5, count // 8) if FAST else count
