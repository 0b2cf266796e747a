"""The excess of a rate in a published sweep: none at the best rate, more away from it, unknown outside the grid."""

from __future__ import annotations

import pytest
from published_rates import excess, tinker

LOSSES = {1e-4: 1.1, 1e-3: 1.0, 1e-2: 1.4}


def test_the_excess_is_read_from_the_line_between_two_rates():
    assert excess(LOSSES, 1e-3) == 0
    assert excess(LOSSES, 1e-4) == pytest.approx(0.1)
    assert excess(LOSSES, 10**-2.5) == pytest.approx(0.2)
    assert excess(LOSSES, 1e-5) is None and excess(LOSSES, 1.0) is None


def test_the_formula_falls_with_the_width_and_less_for_qwen():
    assert tinker("Llama", 2000) == tinker("Qwen3", 2000) == 5e-4
    assert tinker("Llama", 4000) < tinker("Qwen3", 4000) < 5e-4
