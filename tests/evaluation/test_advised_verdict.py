"""The verdict follows from intervals: what clears the margin, what cannot, and what is left undecided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.runs.measured import Measurement
from rankwise.training.advice import Evidence, Gain, LabelEvidence


def gain(value, half=0.05, rows=40):
    return Gain(value, value - half, value + half, rows)


def exactly(value):
    return Measurement(value=value, low=value, high=value)


ANSWERS = Evidence(
    base=exactly(2.0), score=exactly(0.0), gain=gain(0.8), untrained=gain(0.3), over_untrained=gain(0.5),
    content=gain(0.6), blurred=1.8, expected=0.0,
)  # fmt: skip
LABELS = LabelEvidence(
    base=exactly(0.69), score=exactly(0.5), gain=gain(0.01), untrained=gain(0.2), over_untrained=gain(-0.19),
    content=gain(0.0), blurred=0.69, expected=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "train", "better"),
        ({"untrained": None, "over_untrained": None}, "train", "better"),
        ({"untrained": gain(-0.5), "over_untrained": gain(1.3)}, "train", "better"),
        ({"content": None, "blurred": None}, "train", "better"),
        ({"content": gain(0.0)}, "neither", "unrelated"),
        ({"content": gain(0.1, 0.6)}, "undecided", "too few rows"),
        ({"score": exactly(0.97)}, "neither", "solved"),
        ({"over_untrained": gain(0.0)}, "prompt", "examples"),
        ({"over_untrained": gain(0.0), "expected": 0.23}, "undecided", "too short"),
        ({"gain": gain(0.0), "untrained": gain(-0.3), "over_untrained": gain(0.3)}, "neither", "no gain"),
        ({"gain": gain(0.1, 0.2), "untrained": gain(-0.3)}, "undecided", "too few rows"),
    ],
)
def test_verdicts_on_answers(changes, verdict, reason):
    assert replace(ANSWERS, **changes).decide()[:2] == (verdict, reason)


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "train", "probe"),
        ({"gain": gain(0.4), "over_untrained": gain(0.2), "content": gain(0.5)}, "train", "better"),
        ({"untrained": gain(0.0)}, "neither", "no gain"),
        ({"untrained": gain(0.0), "gain": gain(0.3), "content": gain(0.0)}, "undecided", "too few rows"),
        ({"untrained": gain(0.1, 0.2)}, "undecided", "too few rows"),
    ],
)
def test_verdicts_on_labels(changes, verdict, reason):
    assert replace(LABELS, **changes).decide()[:2] == (verdict, reason)


def test_more_rows_are_named_where_they_would_decide():
    verdict, _, rows = replace(ANSWERS, content=gain(0.3, 0.6)).decide()
    assert (verdict, rows) == ("undecided", 160)  # twice the precision takes four times the rows
