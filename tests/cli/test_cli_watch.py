"""`rankwise watch` reads what another process writes, and ends as the runs end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kit.command import rankwise
from kit.sampling import draws
from rankwise.cli import watch as of_terminal
from rankwise.cli.watch import chart
from rankwise.commands import watch as watching
from rankwise.system.locks import Lock


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    folder = library.lay_out(tmp_path / "work", "adalora", "short")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(watching, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(watching, "SECONDS_BETWEEN_STATES", 0.0)
    return folder


def rows_of(name):
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


def as_ended(name, **changes):
    file = Path("runs", name, "manifest.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def watched(*names):
    return rankwise("watch", *names)


def test_json_has_every_record_and_the_end(home):
    result = watched("adalora", "short", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    for name in ("adalora", "short"):
        own = [{key: value for key, value in line.items() if key != "run"} for line in lines if line["run"] == name]
        assert own[:-1] == rows_of(name)
        assert own[-1] == {"kind": "end", "status": "finished", "problem": None, "exit_code": 0}
    assert result.exit_code == 0


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 130), ("running", 130)])
def test_it_ends_as_the_run_ended(status, code, home):
    # "running" without a process that writes: it was killed
    as_ended("short", status=status, problem="the disk is full\x1b[31m" if status == "failed" else None)
    result = watched("short", "adalora")
    assert result.exit_code == code
    assert f"short: {'interrupted' if status == 'running' else status}" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_run_is_waited_for_and_followed_to_its_end(home):
    # written by another process, as a training writes: a line in two parts, then cut back and gone on with other values
    shutil.move("runs/short", "aside")
    rows, log = rows_of("adalora"), Path("runs/short/metrics.jsonl")
    cut = [*rows[:6], *({**row, "loss": 0.5} for row in rows[6:] if row["kind"] == "step")]
    lock: list[Lock] = []

    def write():
        lock.append(Lock.with_folder(Path("runs/short/.lock")))
        for name in ("config.json", "manifest.json"):
            shutil.copy(Path("aside", name), Path("runs/short", name))
        with log.open("w") as file:
            for row in rows[:9]:
                line = json.dumps(row) + "\n"
                file.write(line[:20])
                file.flush()
                time.sleep(0.01)
                file.write(line[20:])
                file.flush()
        time.sleep(0.1)
        Path("new").write_text("".join(json.dumps(row) + "\n" for row in cut))
        Path("new").replace(log)
        time.sleep(0.1)
        lock[0].release()

    writing = threading.Timer(0.15, write)
    writing.start()
    result = watched("short", "--json")
    writing.join()
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{key: value for key, value in line.items() if key != "run"} for line in lines[:-1]] == [*rows[:9], *cut[6:]]
    assert lines[-1]["kind"] == "end" and result.exit_code == 0


def test_lines_are_plain_and_few(home):
    text = watched("adalora").stdout
    assert text.splitlines()[-1] == "adalora: finished"
    assert "adalora: step 40/40  loss " in text and "validation loss after step 40: " in text
    assert text.count("adalora: step ") == 1 and "\x1b" not in text


VALUES = ("NaN", "1e999", "1" + "0" * 400, '"\\u001b]0;x\\u0007"', "null", "{}", "true")
OTHERS = {"loss": "NaN", "steps": "1e999", "seconds": "1" + "0" * 400, "resident_bytes": "null"}
DAMAGED = [*(("step", value) for value in VALUES), *OTHERS.items()]


@pytest.mark.parametrize(("name", "value"), DAMAGED)
def test_a_damaged_log_is_watched_to_its_end(home, name, value):
    log = Path("runs/short/metrics.jsonl")
    text = log.read_text().replace(f'"{name}":', f'"{name}": {value}, "was":')
    log.write_text(text + f'{{"kind": "ranks", "step": 1, "ranks": {{"a": {value}}}}}\n')
    result = watched("short")
    assert result.exit_code == 0 and "short: finished" in result.stdout and "\x1b" not in result.stdout
    (run,) = watching.watched(["short"])
    run.look()
    run.state = "running"
    assert drawn([run], 60, True)


@pytest.mark.parametrize(
    ("given_names", "problem"),
    [
        ((), "no run is being trained"), (("a", "a"), "named twice"), (("..",), "none can get this name"),
        (("x" * 300,), "none can get this name"), (("",), "none can get this name"),
    ],
)  # fmt: skip
def test_mistakes_are_told(given_names, problem, home):
    result = watched(*given_names)
    assert (result.exit_code, problem in result.stderr) == (2, True)


def drawn(runs, width, blocks):
    console = Console(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(of_terminal.picture(runs, width, blocks))
    return captured.get()


@pytest.mark.parametrize("width", [8, 32, 60, 100])
@pytest.mark.parametrize("blocks", [True, False])
def test_pictures_fit_every_width_and_every_character_set(width, blocks, home):
    runs = watching.watched(["adalora", "short", "none-yet"])
    for run in runs:
        run.look()
    lines = drawn(runs, width, blocks).splitlines()
    assert max(map(len, lines)) <= width
    assert blocks or "".join(lines).isascii()
    text = "\n".join(lines)
    for word in ("loss", "validation", "tokens/s")[: 3 if width > 8 else 1]:
        assert word in text
    if width >= 100:  # side by side
        assert any("adalora" in line and "short" in line for line in lines)


def test_a_terminal_gets_curves_and_no_color_means_none(home):
    pty = pytest.importorskip("pty", reason="no pseudo terminals on this system")
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    for colour in ({}, {"NO_COLOR": "1"}):
        ours, theirs = pty.openpty()
        environment = plain | {"TERM": "xterm-256color", "COLUMNS": "90", "PYTHONUTF8": "1"} | colour
        with subprocess.Popen(
            [sys.executable, "-m", "rankwise", "watch", "adalora"], stdout=theirs, stderr=theirs, env=environment
        ) as process:
            os.close(theirs)
            output = b""
            with contextlib.suppress(OSError):  # the end of a pseudo terminal
                while part := os.read(ours, 65536):
                    output += part
        os.close(ours)
        assert process.returncode == 0
        assert "█" in output.decode() and "mean rank" in output.decode()
        assert (b"\x1b[36m" in output) is not bool(colour)


def test_records_that_a_shortened_log_still_has_are_not_new(home):
    file = Path("runs/adalora/metrics.jsonl")
    run, lines = watching.WatchedRun("adalora"), file.read_text().splitlines(keepends=True)
    assert list(run.look()) == rows_of("adalora") and list(run.look()) == []
    file.write_text("".join(lines[:2]))
    assert list(run.look()) == [] and run.rows == rows_of("adalora")
    with file.open("a") as log:
        log.write('{"kind": "step", "step": 9}\nnot json\n[1]\n{"kind": "st')
    assert list(run.look()) == [{"kind": "step", "step": 9}] and len(run.rows) == 3


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60), st.integers(1, 40), st.integers(1, 6),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=draws(60))
def test_a_chart_has_its_size_and_rises_with_its_values(values, width, height, blocks):
    lines = chart(values, width, height, blocks)
    assert len(lines) == height and all(len(line) <= width for line in lines)


def test_a_chart_shows_what_the_values_do():
    assert chart([3.0, 2.0, 1.0], 10, 2, blocks=False) == ["#.", "##."]
    assert chart([1, 2, 3, 4, 5, 6, 7, 8], 8, 1) == ["▁▂▃▄▅▆▇█"]
    assert chart([], 8, 2) == ["", ""] and chart([float("nan")], 8, 1) == [""]
    assert len(chart([2.6e305, -1.8e308], 2, 1)) == 1, "whose difference no number holds"
