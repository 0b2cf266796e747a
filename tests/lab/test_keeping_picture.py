"""The picture of what keeps a model near its base shows ways that the lab knows, where its cells measured them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keeping
import keeping_picture
import pytest


def cell(losses: dict[str, float], kls: dict[str, float]) -> dict[str, Any]:
    return {
        "measured": {at: {"rows": [[loss * 4, 4]], "kl": {"wikitext": kls[at]}} for at, loss in losses.items()}
    }  # fmt: skip


def test_a_front_is_the_loss_above_plains_and_the_divergence_at_each_strength():
    done: dict[Any, dict[str, Any]] = {
        ("e2e", "plain", 0): cell({"1.0": 1.5, "0.5": 1.75}, {"1.0": 0.2, "0.5": 0.05}),
        ("e2e", "anchor", 0): cell({"1.0": 1.25, "0.5": 2.0}, {"1.0": 0.1, "0.5": 0.02}),
        ("e2e", "anchor", 1): cell({"1.0": 9.0}, {"1.0": 9.0}),
    }  # fmt: skip
    assert keeping_picture.points(done, "e2e", "plain") == [(0.0, 0.2), (0.25, 0.05)]
    assert keeping_picture.points(done, "e2e", "anchor") == [(-0.25, 0.1), (0.5, 0.02)]
    assert keeping_picture.points(done, "e2e", "replay") == []


def test_every_way_of_the_picture_is_one_of_the_lab():
    assert keeping_picture.WAYS.keys() <= keeping.WAYS.keys()


@pytest.mark.parametrize("task", keeping.ROWS)
def test_each_task_of_the_picture_has_plain_and_the_anchor(task):
    done = keeping_picture.done_in(Path(__file__).parents[2] / "lab/keeping/keeping.jsonl")
    assert len(keeping_picture.points(done, task, "plain")) == len(keeping_picture.points(done, task, "anchor")) == 3
