"""The table of regrets: against the best of seven rates, only of tasks that are done."""

from __future__ import annotations

from typing import Any

import tuning


def test_regret_is_counted_against_the_best_of_the_seven_rates():
    done: dict[Any, dict[str, Any]] = {
        ("e2e", "rate", 60, 1, at, 0): {"loss": 1.0 + 0.01 * (at - 1) ** 2} for at in tuning.GRID
    }
    chosen = {"loss": 1.02, "default": 2e-3, "rate": 3e-3, "tuning_seconds": 3.0, "seconds": 12.0}
    assert "Median" not in "".join(tuning.table(done))
    done["e2e", "tune", 60, 1, 0, 0] = chosen
    done["dolly", "rate", 60, 1, 0, 0] = {"loss": 2.0}
    text = "\n".join(tuning.table(done))
    assert "| e2e | 60 | 1 | 0.0028 | 1.0000 | 0.002 | +1.0% | 0.003 | +2.0% | 25% |" in text
    assert "dolly" not in text and "Median regret of 1 lines +2.00%, worst +2.00%" in text
    assert "| dolly | 60 | 1/1 | 0 |" in "\n".join(tuning.curves(done))


def test_losses_are_means_over_the_seeds_that_are_complete():
    done: dict[Any, dict[str, Any]] = {
        ("e2e", "rate", 60, 1, at, seed): {"loss": 1.0 + 0.1 * seed * (at != 0)}
        for at in tuning.GRID
        for seed in (0, 1, 2)
    }
    for seed, loss, rate in ((0, 1.0, 2e-3), (1, 1.1, 3e-3)):
        done["e2e", "tune", 60, 1, 0, seed] = {
            "loss": loss, "default": 2e-3, "rate": rate, "tuning_seconds": 1.0 + seed, "seconds": 10.0,
        }  # fmt: skip
    (_, _, row, *_) = tuning.table(done)
    assert row == "| e2e | 60 | 2 | 0.002 | 1.0000 | 0.002 | +0.0% | 0.002, 0.003 | +5.0% | 15% |"


def test_a_stored_cell_without_a_seed_is_one_of_seed_0(tmp_path):
    with tuning.MetricsLog(tmp_path / "tuning.jsonl") as log:
        log.append({"kind": "cell", "cell": ["e2e", "rate", 60, 1, 0], "loss": 1.0})
        log.append({"kind": "cell", "cell": ["e2e", "rate", 60, 1, 0, 1], "loss": 2.0})
    done = tuning.done_in(tmp_path / "tuning.jsonl")
    assert {cell: row["loss"] for cell, row in done.items()} == {
        ("e2e", "rate", 60, 1, 0, 0): 1.0, ("e2e", "rate", 60, 1, 0, 1): 2.0,
    }  # fmt: skip
