"""The divergence of AdaLoRA where its loss is LoRA's: on the line between the measured strengths around that loss."""

from __future__ import annotations

from typing import Any

import adalora_keeping
import pytest


def cell(points: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    """By strength: loss, and divergence on WikiText-2 and on C."""
    measured = {
        at: {"rows": [[loss * 10, 10]], "kl": {"wikitext": [[prose * 4, 4]], "c-headers": [[code * 4, 4]]}}
        for at, (loss, prose, code) in points.items()
    }
    return {"measured": measured}


def plain(loss: float, prose: float, code: float) -> dict[str, Any]:
    return {"measured": {"1.0": {"rows": [[loss * 10, 10]], "kl": {"wikitext": prose, "c-headers": code}}}}


OURS = {"1.0": (1.0, 0.2, 0.1), "0.9": (1.25, 0.16, 0.06), "0.8": (1.5, 0.12, 0.02)}


@pytest.mark.parametrize(
    ("loss", "strength", "kls"),
    [(1.0, 1.0, [0.2, 0.1]), (1.125, 0.95, [0.18, 0.08]), (1.5, 0.8, [0.12, 0.02]), (0.9, 1.0, [0.2, 0.1])],
)
def test_strength_and_divergence_are_read_where_the_losses_meet(loss, strength, kls):
    at, between = adalora_keeping.meeting(cell(OURS), plain(loss, 1.0, 1.0))
    assert at == pytest.approx(strength) and between == pytest.approx(kls)


def test_the_table_has_each_seeds_shares_and_their_mean():
    done: dict[Any, Any] = {
        ("e2e", "zero-fine", 2e-3, 0): cell(OURS), ("e2e", "zero-fine", 2e-3, 1): cell(OURS),
        ("e2e", "zero", 2e-3, 0): cell(OURS),
    }  # fmt: skip
    others = {("e2e", "plain", 0): plain(1.125, 0.18, 0.16), ("e2e", "plain", 1): plain(1.0, 0.1, 0.1)}
    (line,) = list(adalora_keeping.at_equal_loss(done, others))[2:]
    assert line == "| e2e | zero-fine | 0, 1 | 0.950, 1.000 | 1.00, 0.50; 2.00, 1.00 | 1.50, 0.75 |"
