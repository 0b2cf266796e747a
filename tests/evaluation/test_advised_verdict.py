"""The verdict follows from intervals: what clears the margin, what cannot, and what is left undecided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.runs.measured import Difference
from rankwise.training.advising import AnswerAdvising, Evidence, LabelAdvising


def gain(value, half=0.05, rows=40):
    return lost(-value, half, rows)


def lost(value, half=0.05, rows=40, to=1.8):
    return Difference(
        a=to - value, b=to, difference=value, low=value - half, high=value + half, p=0.5, n=rows, verdict="better"
    )  # fmt: skip


ANSWERS = Evidence(
    loss=2.0, gain=gain(0.8), untrained=gain(0.3), over_untrained=gain(0.5), content=lost(0.6), expected=0.0
)  # fmt: skip
LABELS = Evidence(
    loss=0.69, gain=gain(0.01), untrained=gain(0.2), over_untrained=gain(-0.19), content=None, expected=0.0
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "train", "better"),
        ({"untrained": None, "over_untrained": None}, "train", "better"),
        ({"untrained": gain(-0.5), "over_untrained": gain(1.3)}, "train", "better"),
        ({"content": None}, "train", "better"),
        ({"content": lost(0.0)}, "neither", "unrelated"),
        ({"content": lost(0.1, 0.6)}, "undecided", "too few rows"),
        ({"over_untrained": gain(0.0)}, "prompt", "examples"),
        ({"over_untrained": gain(0.0), "expected": 0.23}, "undecided", "too short"),
        ({"gain": gain(0.0), "untrained": gain(-0.3), "over_untrained": gain(0.3)}, "neither", "no gain"),
        ({"gain": gain(0.1, 0.2), "untrained": gain(-0.3)}, "undecided", "too few rows"),
    ],
)
def test_verdicts_on_answers(changes, verdict, reason):
    assert replace(ANSWERS, **changes).decide(AnswerAdvising.other_ways)[:2] == (verdict, reason)


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "train", "probe"),
        ({"gain": gain(0.4), "over_untrained": gain(0.2)}, "train", "better"),
        ({"untrained": gain(0.0)}, "neither", "no gain"),
        ({"untrained": gain(0.0), "over_untrained": gain(0.3), "gain": gain(0.3)}, "train", "better"),
        ({"untrained": gain(0.1, 0.2)}, "undecided", "too few rows"),
    ],
)
def test_verdicts_on_labels(changes, verdict, reason):
    assert replace(LABELS, **changes).decide(LabelAdvising.other_ways)[:2] == (verdict, reason)


def test_more_rows_are_named_where_they_would_decide():
    verdict, _, rows = replace(ANSWERS, content=lost(0.3, 0.6)).decide(AnswerAdvising.other_ways)
    assert (verdict, rows) == ("undecided", 160)  # twice the precision takes four times the rows
