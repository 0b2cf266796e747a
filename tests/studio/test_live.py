"""A browser that follows a run gets each record once and in order, however it is interrupted."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import aclosing
from itertools import pairwise

import pytest

from kit.hostile_texts import PAYLOADS
from kit.report_runs import made_run
from rankwise.runs.metrics_log import LogTail, line_of
from rankwise.studio import live
from rankwise.studio.live import StateReader, _events, message
from rankwise.studio.runs import row_of


def step(number, **more):
    return {
        "kind": "step", "step": number, "steps": 99, "loss": 1 / number, "learning_rate": 1e-3, "gradient_norm": 0.5,
        "tokens_per_second": 10.0, "resident_bytes": 5, "seconds": 0.1,
    } | more  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_each_record_comes_once_and_in_order_through_any_interruptions(tmp_path, seed):
    """The log grows by pieces that end anywhere, and the browser comes back with its position at any moment."""
    choose, log = random.Random(seed), tmp_path / "metrics.jsonl"
    records = [step(number) for number in range(1, 40)]
    written = "".join(map(line_of, records)).encode()
    tail, got, at = LogTail.after(log, ""), [], 0
    while at < len(written) or len(got) < len(records):
        piece = choose.randrange(0, 700)
        with log.open("ab") as file:
            file.write(written[at : at + piece])
        at = min(len(written), at + piece)
        anew, rows = tail.read()
        assert not anew
        got += rows
        if choose.random() < 0.3:
            tail = LogTail.after(log, tail.position)
    assert got == records


@pytest.mark.parametrize(
    ("kept_lines", "more_lines", "away"), [(0, 1, True), (0, 30, False), (3, 1, False), (3, 30, True)]
)
def test_a_log_that_was_cut_or_begun_anew_is_read_from_its_beginning(tmp_path, kept_lines, more_lines, away):
    # a run that is begun again, or that goes on from a checkpoint, writes other lines after the same ones
    log = tmp_path / "metrics.jsonl"
    before = [step(number) for number in range(1, 11)]
    log.write_text("".join(map(line_of, before)))
    tail = LogTail.after(log, "")
    assert tail.read() == (False, before)
    log.unlink()
    if not away:
        anew, rows = tail.read()
        assert (anew, rows) == (True, [])
    after = before[:kept_lines] + [step(kept_lines + 1 + number, loss=9.0) for number in range(more_lines)]
    log.write_text("".join(map(line_of, after)))
    tail = LogTail.after(log, tail.position) if away else tail
    assert tail.read() == (away, after)


@pytest.mark.parametrize(
    "position", ["", "x", "12", "-1-00000000", "1e9-00000000", "9" * 30 + "-00000000", "10-zzzzzzzz"]
)
def test_a_position_that_is_none_is_the_beginning(tmp_path, position):
    log = tmp_path / "metrics.jsonl"
    log.write_text(line_of(step(1)))
    assert LogTail.after(log, position).read()[1] == [step(1)]


def test_what_is_no_record_is_passed_over(tmp_path):
    log = tmp_path / "metrics.jsonl"
    odd = [
        b"not json", b"[1, 2]", b"\xff\xfe", b'{"kind": "step", "step": "1"}', b'{"kind": "step", "step": 1e999}',
        b'{"kind": "step", "step": 1' + b"0" * 400 + b"}", b'{"kind": "ranks", "ranks": {"a": "b"}, "step": NaN}',
        b'{"kind": "validation", "step": 1}', b'{"kind": "score", "step": 1, "metric": [1], "value": NaN}',
        b"[" * 100_000, b'{"kind": "ranks", "ranks": {"model.layers.0.q": 2}, "step": NaN, "unit": {}}',
    ]  # fmt: skip
    log.write_bytes(b"\n".join([*odd, json.dumps(step(2, loss=float("nan"))).encode(), b""]))
    _, rows = LogTail.after(log, "").read()
    sent = json.loads(json.dumps(message(rows), allow_nan=False))
    assert [one[:2] for one in sent["steps"]] == [[2, None]], "a loss that is no number is drawn as none"
    assert sent["validation"] == [] and sent["scores"] == []
    assert sent["ranks"]["cells"] == [[2]]


def test_a_long_record_is_sent_as_means_that_miss_no_step(monkeypatch):
    monkeypatch.setattr(live, "MOST_STEPS", 10)
    sent = message([step(number, loss=float(number)) for number in range(1, 96)])
    assert len(sent["steps"]) == 10 and sent["steps"][-1][0] == 95
    ends = [0, *(int(one[0]) for one in sent["steps"])]
    means = [sum(range(a + 1, b + 1)) / (b - a) for a, b in pairwise(ends)]
    assert [one[1] for one in sent["steps"]] == pytest.approx(means)
    assert len(message([step(number) for number in range(1, 11)])["steps"]) == 10


def events_of(run, count, position=""):
    """The first events of a run's stream: their kinds, data and ids."""

    async def first():
        parts = []
        async with aclosing(_events(LogTail.after(run.metrics, position), StateReader(run))) as stream:
            async for piece in stream:
                parts += [part for part in piece.decode("ascii").split("\n\n") if part.strip(":\n ")]
                if len(parts) >= count:
                    return parts

    found = []
    for part in asyncio.run(asyncio.wait_for(first(), 20)):
        fields = dict(line.split(": ", 1) for line in part.splitlines())
        found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


def test_the_stream_of_a_run_has_its_records_and_its_state_and_goes_on_from_an_id():
    run = made_run("r", steps=12)
    (kind, records, position), (other, state, none) = events_of(run, 2)
    assert (kind, other, none) == ("records", "state", None)
    assert [one[0] for one in records["steps"]] == list(range(1, 13)) and records["of"] == 12
    assert records["validation"] == [[0, 2.0], [12, 0.7]] and records["ranks"]["step"] == 12
    assert state == {"status": "finished", "problem": None, "warnings": []}
    with run.metrics.open("a") as file:
        file.write(line_of(step(13)))
    [(_, more, _), _] = events_of(run, 2, position)
    assert [one[0] for one in more["steps"]] == [13]


def test_a_run_whose_process_was_killed_is_interrupted_and_one_that_was_deleted_is_gone():
    run = made_run("r")
    reader = StateReader(run)
    with run.locked():  # its report is written, say
        assert reader.read()["status"] == "finished" == row_of("r").status
    run.write_manifest(run.manifest().model_copy(update={"status": "running", "results": None}))
    with run.locked():
        assert reader.read()["status"] == "running"
    assert reader.read()["status"] == "interrupted"
    run.write_manifest(run.manifest().model_copy(update={"status": "failed", "problem": "no memory"}))
    assert reader.read() == {"status": "failed", "problem": "no memory", "warnings": []}
    with run.locked():
        assert reader.read()["status"] == "starting" == row_of("r").status
        run.write_manifest(run.manifest())
        assert reader.read()["status"] == "failed" == row_of("r").status, "it failed just now, and trackers are closed"
        (run.folder / "manifest.json").unlink()
        assert reader.read()["status"] == "starting"
    assert reader.read()["status"] == "unreadable"
    run.folder.rename("elsewhere")
    assert reader.read()["status"] == "gone"


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_text_of_a_run_ends_a_line_of_the_stream(payload):
    sent = live.event("state", {"problem": payload + "\nevent: x\r\ndata: y"}, "1-00000000")
    lines = sent.decode("ascii").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["id", "event", "data", ""]
    assert json.loads(lines[2].removeprefix("data: "))["problem"].startswith(payload)
