"""Progress: plain lines where nobody watches, a live line on a terminal, silence when asked, and never a crash."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kit.command import rankwise
from kit.processes import Command
from kit.sampling import draws
from rankwise.cli.display import Display, rank_line, sampled
from rankwise.runs.records import (
    LossRecord,
    ProgressUpdate,
    RankRecord,
    SampleRecord,
    ScoreRecord,
    StatusMessage,
    StepRecord,
    WarningMessage,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("display")
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.chdir(folder):
        yield folder


def train_words(model, run, *words):
    given = ("train", "--model", model, "--data", "rows.jsonl", "--run", run, "--batch-size", 2, *words)
    return [str(word) for word in given]


@pytest.mark.parametrize("colour", [True, False])
def test_a_pipe_gets_plain_lines_on_stderr_and_the_result_alone_on_stdout(home, tiny_folder, monkeypatch, colour):
    if colour:
        monkeypatch.delenv("NO_COLOR")
    words = train_words(tiny_folder, f"plain-{colour}", "--steps", 12, "--held-out", 2, "--json")
    result = rankwise(*words)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stderr and "\r" not in result.stderr
    lines = result.stderr.splitlines()
    first = next(line for line in lines if line.startswith("Training"))
    last = [line for line in lines if line.startswith("Training")][-1]
    assert "1/12" in first and "100%" in last and "12/12" in last
    assert "loss" in last and "tokens/s" in last
    assert re.search(r"[\d.]+ [MG]B", last), "the memory of the process, which may have run other tests before"
    assert any("validation loss before training" in line for line in lines)
    assert any("validation loss after step 12" in line for line in lines)
    assert len(json.loads(result.stdout)) > 10 and result.stdout.count("\n") == 1


def test_quiet_shows_nothing_of_a_good_run_and_the_result_all_the_same(home, tiny_folder):
    result = rankwise(*train_words(tiny_folder, "quiet", "--steps", 3, "--quiet"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split()[:2] == ["run", "quiet"] and re.search("steps +3\n", result.stdout)


def on_terminal(words, columns):
    """What the command shows on a terminal that is `columns` wide, and what it prints to a file."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = bytearray()

    def watch():
        with contextlib.suppress(OSError):  # the terminal's end is an error on Linux
            while part := os.read(mine, 65536):
                shown.extend(part)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        process = Command(*words, terminal=os.ttyname(theirs))
        out, _ = process.communicate()
    os.close(theirs)
    watcher.join()
    os.close(mine)
    return process.returncode, shown.decode(), out


STEPS = 150


def drawn(shown):
    """The lines of the bar, one after another, without their escape codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return [line for line in re.split(r"[\r\n]+", plain) if "Training" in line]


@pytest.mark.slow
def test_a_terminal_of_80_columns_gets_one_line_that_is_drawn_anew_and_its_cursor_back(home, tiny_folder):
    words = train_words(tiny_folder, "live", "--steps", STEPS, "--json")
    code, live, out = on_terminal(words, columns=80)
    assert code == 0, live
    assert out.count("\n") == 1 and "\x1b" not in out and json.loads(out)["steps"] == STEPS
    assert re.search(r"\r\x1b\[2K", live) and len(drawn(live)) > 3
    assert live.rindex("\x1b[?25h") > live.rindex("\x1b[?25l")
    last = drawn(live)[-1]
    assert "100%" in last and f"{STEPS}/{STEPS}" in last, last
    assert re.search(r"loss \d+\.\d+", last) and "tokens/s" in last, last
    assert any(re.search(r"\d:\d\d left|left +\d+:\d\d", line) for line in drawn(live)), last


texts = st.text("ab é{}%/:", max_size=30)
counts = st.integers(0, 2000)
numbers = st.floats(0, 1e12)
RANKS = st.builds(
    RankRecord, counts, counts, counts,
    st.dictionaries(st.text("ab.é[]{}%/\x1b\n", max_size=30), st.integers(0, 10**6), max_size=9), st.booleans(),
)  # fmt: skip
EVENTS = st.one_of(
    RANKS,
    st.builds(StatusMessage, texts),
    st.builds(WarningMessage, texts),
    st.builds(ProgressUpdate, texts, counts | numbers, counts | numbers, st.sampled_from(["bytes", "rows"])),
    st.builds(LossRecord, counts, st.floats(), counts, counts),
    st.builds(ScoreRecord, counts, texts, st.floats(), counts),
    st.builds(SampleRecord, counts, texts, st.none() | texts, texts),
    st.builds(
        StepRecord, st.integers(1, 50), st.integers(1, 50), numbers, st.floats(), numbers, numbers, counts, counts,
        st.floats(1e-9, 1e6), counts,
    ),
)  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_no_sequence_of_events_crashes_the_display(terminal, monkeypatch, capsys):
    if terminal:
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("FORCE_COLOR", "1")

    @settings(max_examples=draws(60), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(EVENTS, max_size=8), st.booleans())
    @example([ProgressUpdate("Reading", 0, 0, "rows"), ProgressUpdate("Reading", 5, 0, "bytes")], False)
    def tell(events, quiet):
        with Display(quiet) as display:
            for event in events:
                display(event)
        assert capsys.readouterr().out == ""

    tell()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        StatusMessage("rows [1/2] of data/[bold]x.jsonl: 50% {done} [/x]"),
        ProgressUpdate("Reading [1/2] of data/[bold]x.jsonl {done} [/x]", 3, 4, "rows"),
    ],
    ids=["said", "progressed"],
)
def test_a_name_with_brackets_is_shown_to_the_letter(event, terminal, monkeypatch, capsys):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    with Display() as display:
        display(event)
    words = event.text if isinstance(event, StatusMessage) else event.what
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("quiet", [False, True])
def test_a_warning_is_shown_to_the_quiet_too_and_the_training_line_goes_on(quiet, terminal, monkeypatch, capsys):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    with Display(quiet) as display:
        for event in (stepped(1), WarningMessage("rows [1/2] {x} are too long"), stepped(100)):
            display(event)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert shown.count("warning: rows [1/2] {x} are too long") == 1
    assert ("Training" in shown) == (not quiet)


def test_an_error_inside_the_display_closes_the_live_line(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(KeyboardInterrupt), Display() as display:
        display(ProgressUpdate("Reading", 1, 4, "rows"))
        raise KeyboardInterrupt
    shown = capsys.readouterr().err
    assert shown.endswith("\n\x1b[?25h"), repr(shown[-80:])


@pytest.mark.parametrize(
    "words", [("data", "check"), ("data", "check", "x", "--held-out", "y"), ("train", "--bogus"), ("nothing",)], ids=str
)
def test_a_mistake_in_the_words_is_one_object_too(words):
    result = rankwise(*words, "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["exit_code"] == 2 and told["error"]
    assert rankwise(*words).stdout == ""


@pytest.mark.parametrize("json_", [[], ["--json"]], ids=["plain", "json"])
def test_an_output_that_cannot_be_written_is_told_without_a_traceback(json_):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rankwise", "data", "recipes", *json_],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 4
    assert done.stderr.startswith("rankwise: the output cannot be written") and done.stderr.count("\n") == 1


def test_a_terminal_that_has_few_characters_gets_them_escaped():
    done = subprocess.run(
        [sys.executable, "-c", "from rankwise.cli.display import print_json; print_json({'name': 'fïle 日本'})"],
        capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"name": "fïle 日本"}


@settings(deadline=None, derandomize=True)
@given(RANKS, st.integers(60, 200))
def test_a_line_of_ranks_is_one_line_that_fits_and_steers_no_terminal(record, room):
    line = rank_line(record, room)
    assert len(line) <= room and line.isprintable()
    assert line.startswith(f"budget {record.budget:,} of {record.of:,} {record.unit}, mean rank ")
    assert record.describe().isprintable()


PLAN = RankRecord(
    9, 12, 20, {f"layers.{n}.{leaf}": rank for n in (0, 1) for leaf, rank in (("q", 0), ("v", 4), ("up", 2))}, False
)


def test_a_line_of_ranks_has_the_mean_and_the_share_of_each_kind_of_layer():
    assert rank_line(PLAN, 80) == "budget 12 of 20 triplets, mean rank 2.0: v 67%, up 33%"
    assert rank_line(PLAN, 49) == "budget 12 of 20 triplets, mean rank 2.0: v 67%"
    assert rank_line(PLAN, 40) == "budget 12 of 20 triplets, mean rank 2.0"


def test_the_last_decision_is_one_sentence():
    said = "ranks after step 9: 12 in 6 layers, 2.00 on average (budget 12 of 20 triplets); 2 of them have none"
    assert PLAN.describe() == said and replace(PLAN, final=True).describe() == f"final {said}"


def stepped(step):
    return StepRecord(step, 100, 0.5, 1.5, 1e-3, 1.0, 100, 50, 0.5, 10**9)


EVALUATED = (ScoreRecord(5, "exact", 0.25, 8), ScoreRecord(5, "bleu", 31.4159, 8), LossRecord(5, 1.23456, 99, 6))


@pytest.mark.parametrize("terminal", [False, True])
def test_an_evaluation_is_one_line_and_the_training_line_goes_on(terminal, monkeypatch, capsys):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "160")
    with Display() as display:
        for event in (stepped(1), stepped(5), *EVALUATED, stepped(6), *EVALUATED, stepped(100)):
            display(event)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    line = "validation loss after step 5: 1.2346 nats per loss token (6 sequences); exact 0.250, bleu 31.416 (8 rows)"
    assert shown.count(line) == 2
    trained = [part for part in re.split(r"[\r\n]+", shown) if part.startswith("Training")]
    assert "100/100" in trained[-1]
    assert terminal or len(trained) == 2, "the line did not begin anew"


def test_a_sample_is_one_line_that_steers_no_terminal():
    long = SampleRecord(7, "Who\nis " + "very " * 40 + "lazy?", None, "The\x1b[31m dog.\n" + "Yes. " * 60)
    line = sampled(long)
    assert line.isprintable() and len(line) < 160
    assert line.startswith('answer after step 7: "…') and 'lazy?" -> "The\\x1b[31m dog. Yes.' in line
    assert sampled(SampleRecord(0, "Who?", "Me.", "You.")) == 'answer before training: "Who?" -> "You."'


def test_a_training_that_ends_early_says_so_and_what_it_kept(home, tiny_folder):
    words = train_words(tiny_folder, "early", "--steps", 12, "--held-out", 2, "--learning-rate", 1.0)
    words += ["--validate-every", "1", "--patience", "1", "--keep", "best", "--set", "training.schedule=constant"]
    result = rankwise(*words)
    assert result.exit_code == 0, result.output
    spec = json.loads((home / "runs" / "early" / "config.json").read_text())["validation"]
    assert (spec["steps"], spec["patience"], spec["keep"]) == (1, 1, "best")
    found = json.loads((home / "runs" / "early" / "manifest.json").read_text())["results"]
    assert found["kept_step"] + 1 == found["steps"] < 12
    lines = result.stderr.splitlines()
    assert sum(line.startswith("validation loss") for line in lines) == found["steps"] + 1
    assert f"ended after step {found['steps']} of 12: {found['ended_early']}" in lines
    assert sum(line.startswith("answer before training: ") for line in lines) == 2
    assert sum(line.startswith(f"answer after step {found['kept_step']}: ") for line in lines) == 2
    assert f"stopped early {found['ended_early']}" in (told := " ".join(result.stdout.split()))
    assert f"selected step {found['kept_step']}: the lowest validation loss of " in told


@pytest.mark.parametrize("terminal", [False, True])
def test_the_training_line_shows_the_ranks_it_has_heard_of(terminal, monkeypatch, capsys):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "80")
    with Display() as display:
        for event in (stepped(1), PLAN, stepped(2), stepped(100)):
            display(event)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert shown.count("budget 12 of 20 triplets, mean rank 2.0: v 67%, up 33%") >= 1
    assert "final ranks" not in shown
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", shown)) or not terminal


def test_a_training_of_adalora_says_once_what_was_decided(home, tiny_folder):
    words = train_words(tiny_folder, "adaptive", "--steps", 30, "--method", "adalora", "--budget", 3)
    result = rankwise(*words)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert sum(line.startswith("final ranks after step ") for line in lines) == 1
    last = [line for line in lines if line.startswith("Training")][-1]
    assert "budget 42 of " in last and "mean rank 3.0" in last
