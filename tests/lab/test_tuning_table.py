"""The table of regrets: against the best of seven rates, only of tasks that are done."""

from __future__ import annotations

from typing import Any

import tuning


def test_regret_is_counted_against_the_best_of_the_seven_rates():
    done: dict[Any, dict[str, Any]] = {
        ("e2e", "rate", 60, 1, at): {"loss": 1.0 + 0.01 * (at - 1) ** 2} for at in tuning.GRID
    }
    chosen = {"loss": 1.02, "default": 2e-3, "rate": 3e-3, "tuning_seconds": 3.0, "seconds": 12.0}
    assert "Median" not in "".join(tuning.table(done))
    done["e2e", "tune", 60, 1, 0] = chosen
    done["dolly", "rate", 60, 1, 0] = {"loss": 2.0}
    text = "\n".join(tuning.table(done))
    assert "| e2e | 0.0028 | 1.0000 | 0.002 | +1.0% | 0.003 | +2.0% | 25% |" in text
    assert "dolly" not in text and "Median regret of 1 tasks +2.00%, worst +2.00%" in text
    assert "| dolly | 60 | 1/1 |" in "\n".join(tuning.curves(done))
