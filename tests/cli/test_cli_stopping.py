"""Ctrl-C, a request to end, a kill and a second trainer: the exit code says which, and no run ever holds half a thing.

Real processes, since signals are theirs. Each is waited for by what it has written, never by the clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kit.command import done, rankwise
from kit.processes import Command
from rankwise.runs.metrics_log import read_metrics_log

NEVER = 1_000_000


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.chdir(folder):
        yield folder


@contextlib.contextmanager
def begun(*words, ignored=None):
    """`rankwise …` as a process of its own, which does not outlive the test."""
    process = Command(*words, ignored=ignored)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def train_words(model, run, *words):
    """Of a run whose form is that of a short one: a million steps would be worth compiling."""
    given = ("--batch-size", 2, "--rank", 2, "--backend", "eager")
    return ("train", "--model", model, "--data", "rows.jsonl", "--run", run, *given, *words)


def wait_for_steps(run, process, steps=3):
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def status(run):
    return json.loads((run / "manifest.json").read_text())["status"]


def assert_can_only_be_begun_again_when_asked(run, model):
    refused = rankwise(*train_words(model, run.name, "--steps", 4))
    assert refused.exit_code == 2 and "--restart" in refused.stderr
    done(*train_words(model, run.name, "--steps", 4, "--restart"))
    assert [row["step"] for row in read_metrics_log(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (run / "adapter" / "adapter_model.safetensors").exists() and status(run) == "finished"
    assert {path.name for path in run.iterdir()} == {
        ".lock", "config.json", "data_report.json", "manifest.json", "metrics.jsonl", "adapter", "report.html",
        "report.json",
    }  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_training_that_is_stopped_says_so_and_keeps_its_metrics_but_no_adapter(home, tiny_folder, number, code):
    run = home / "runs" / f"stopped-{code}"
    with begun(*train_words(tiny_folder, run.name, "--steps", NEVER, "--json")) as process:
        wait_for_steps(run, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err and "\x1b" not in err
    facts = json.loads(out)
    assert (facts["kind"], facts["exit_code"]) == ("Interrupted", code) and out.count("\n") == 1
    assert err.splitlines()[-1] == f"rankwise: {facts['error']}"
    assert f"runs/{run.name}" in facts["error"] and "--restart" in facts["error"]
    assert status(run) == "interrupted" and not (run / "adapter").exists()
    steps = [row["step"] for row in read_metrics_log(run / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 3
    assert rankwise("generate", run.name, "--prompt", "hi").exit_code == 2
    assert_can_only_be_begun_again_when_asked(run, tiny_folder)


def test_a_training_under_nohup_goes_on_when_the_terminal_is_closed(home, tiny_folder):
    run = home / "runs" / "nohup"
    with begun(*train_words(tiny_folder, "nohup", "--steps", NEVER), ignored=signal.SIGHUP) as process:
        wait_for_steps(run, process)
        process.send_signal(signal.SIGHUP)
        wait_for_steps(run, process, (run / "metrics.jsonl").read_bytes().count(b"\n") + 20)


def test_a_second_trainer_is_kept_out_by_three_and_the_first_is_unharmed(home, tiny_folder):
    run = home / "runs" / "shared"
    with begun(*train_words(tiny_folder, run.name, "--steps", 200, "--quiet", "--json")) as process:
        wait_for_steps(run, process)
        os.kill(process.pid, signal.SIGSTOP)  # holds the first where it is, however slow the second may be
        before = (run / "metrics.jsonl").read_bytes()
        for words in ((), ("--restart",)):
            second = rankwise(*train_words(tiny_folder, run.name, "--steps", 4, "--json", *words))
            assert isinstance(second.exception, SystemExit) and second.exit_code == 3
            facts = json.loads(second.stdout)
            assert (facts["kind"], facts["exit_code"]) == ("RunBusyError", 3)
            assert f"process {process.pid}" in facts["error"] and '"shared"' in facts["error"]
        assert (run / "metrics.jsonl").read_bytes() == before
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["steps"] == 200
    assert [row["step"] for row in read_metrics_log(run / "metrics.jsonl")] == list(range(1, 201))
    assert status(run) == "finished" and (run / "adapter" / "adapter_model.safetensors").exists()


def test_an_answer_that_is_stopped_ends_with_130_and_no_traceback(home, tiny_folder):
    model = shutil.copytree(tiny_folder, home / "long")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": NEVER}))
    # with the end token out of reach, the answer goes on until it is stopped
    assert rankwise(*train_words(model, "talker", "--steps", 1)).exit_code == 0
    words = ("generate", "talker", "--prompt", "go on", "--base", "--max-new-tokens", 500_000)
    with begun(*words, "--temperature", 2) as process:
        heard = process.wait_for_output(5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert len(heard) == 5
    assert process.returncode == 130
    assert "Traceback" not in err and err.splitlines()[-1].startswith("rankwise: ")


def test_ctrl_c_while_the_command_is_still_being_read_is_no_traceback():
    """Its first third of a second is spent on imports."""
    source = (
        "import sys, importlib.abc\n"
        "class Pressed(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from rankwise.__main__ import run\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "rankwise: stopped.\n")
