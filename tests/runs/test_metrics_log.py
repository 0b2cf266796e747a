"""Records come back as they were appended; a torn end is left out and any other damage is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.errors import RunError
from rankwise.runs.metrics_log import MetricsLog, first_lines, read_metrics_log
from rankwise.runs.records import LossRecord, StepRecord

VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
ROWS = st.lists(st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=3), min_size=1, max_size=5)  # fmt: skip


def wrote(path, rows):
    with MetricsLog(path) as metrics_log:
        for row in rows:
            metrics_log.append(row)


@settings(max_examples=draws(40), deadline=None)
@given(rows=ROWS)
def test_records_come_back_as_they_were_appended(tmp_path_factory, rows):
    # U+2028 in a value would be a line end to the reader, were it written as it is
    path = tmp_path_factory.mktemp("metrics log") / "metrics.jsonl"
    wrote(path, rows)
    assert read_metrics_log(path) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


@settings(max_examples=draws(40), deadline=None)
@given(rows=ROWS, data=st.data())
def test_a_metrics_log_torn_anywhere_gives_the_records_before_the_tear(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("metrics log") / "metrics.jsonl"
    wrote(path, rows)
    whole = path.read_bytes()
    torn = whole[: data.draw(st.integers(0, len(whole)))]
    path.write_bytes(torn)
    read = read_metrics_log(path)
    assert read == rows[: len(read)]
    assert len(read) - torn.count(b"\n") in (0, 1), "only the last record may be lost, and only if it is torn"


def test_what_is_cut_can_be_appended_to(tmp_path):
    """A last line that was whole but for its end was glued to the next."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    path.write_bytes(first_lines(path, len(read_metrics_log(path))))
    wrote(path, [{"a": 3}])
    assert read_metrics_log(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize("damage", ['{"a": 1', "", "nonsense"])
def test_damage_before_the_end_is_told_with_its_line(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"a": 0}}\n{damage}\n{{"a": 2}}\n')
    with pytest.raises(RunError) as caught:
        read_metrics_log(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_record_can_be_read_as_soon_as_it_is_appended(tmp_path):
    # a run that is killed keeps its metrics
    with MetricsLog(tmp_path / "metrics.jsonl") as metrics_log:
        metrics_log.append({"a": 1})
        assert read_metrics_log(tmp_path / "metrics.jsonl") == [{"a": 1}]


def test_a_metrics_log_is_appended_to(tmp_path):
    wrote(tmp_path / "m", [{"a": 1}])
    wrote(tmp_path / "m", [{"a": 2}])
    assert read_metrics_log(tmp_path / "m") == [{"a": 1}, {"a": 2}]


def test_a_metrics_log_is_closed_when_the_work_fails(tmp_path):
    with pytest.raises(RuntimeError), MetricsLog(tmp_path / "m") as metrics_log:
        metrics_log.append({"a": 1})
        raise RuntimeError
    with pytest.raises(ValueError, match="closed"):
        metrics_log.append({"a": 2})


def test_a_record_says_what_kind_it_is_and_keeps_every_field(tmp_path):
    step = StepRecord(
        step=1, steps=2, epoch=0.5, loss=1.25, learning_rate=1e-3, gradient_norm=0.5, tokens=90, loss_tokens=30,
        seconds=0.5, resident_bytes=7,
    )  # fmt: skip
    loss = LossRecord(step=2, loss=1.0, loss_tokens=3, sequences=1)
    wrote(tmp_path / "m", [step.as_row(), loss.as_row()])
    first, second = read_metrics_log(tmp_path / "m")
    assert first.pop("kind") == "step"
    assert first.pop("tokens_per_second") == 180.0
    assert StepRecord(**first) == step
    assert second.pop("kind") == "validation"
    assert LossRecord(**second) == loss
