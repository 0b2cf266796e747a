"""One training at a time, in its turn, whoever is killed: who adds, who works, or what is trained."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError, RunError
from rankwise.runs.directory import RunDirectory
from rankwise.runs.listing import listed
from rankwise.runs.queue import Queue, work
from rankwise.system.locks import Lock

RECORDER = """
import json, sys, time
from pathlib import Path
run = json.loads(Path(sys.argv[1]).read_text())["run"]
with open("log", "a") as log: print("+" + run, file=log)
time.sleep(float(Path("seconds").read_text()))
with open("log", "a") as log: print("-" + run, file=log)
print(json.dumps({"run": run} | ({"error": "no rows"} if run.startswith("bad") else {})))
sys.exit(run.startswith("bad"))
"""
"""Stands for a training where only its turn matters."""


def command(settings, waiting):
    return [sys.executable, "-c", RECORDER, str(settings.absolute())]


def experiment(run="a", **values):
    return Experiment(**{"model": "tiny-llama", "data": "rows.jsonl", "run": run} | values).explicit


@pytest.fixture(autouse=True)
def here(tmp_path):
    with contextlib.chdir(tmp_path):
        Path("seconds").write_text("0.05")
        yield tmp_path


@pytest.fixture
def queue(monkeypatch):
    """With no worker but those that a test starts itself."""
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    return Queue()


def until(condition, seconds=200):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return value


def in_process(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def worker(queue):
    return in_process(partial(work, queue, command))


def trained():
    return Path("log").read_text().split() if Path("log").exists() else []


def in_turn(lines):
    return lines == [sign + line[1:] for line in lines[::2] for sign in "+-"]


def test_they_are_trained_in_the_order_in_which_they_were_added(queue):
    for run in ("c", "a", "b"):
        queue.add(run, experiment(run))
    assert [one.run for one in queue.waiting()] == ["c", "a", "b"] and queue.waiting()[1].config.explicit == experiment(
        "a"
    )
    work(queue, command)
    assert trained() == ["+c", "-c", "+a", "-a", "+b", "-b"]
    assert not queue.waiting() and queue.working() is None and queue.ended("a").problem is None
    assert queue.ended("never") is None


def test_a_training_has_the_permission_of_its_own_entry_to_ask_the_network(queue, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    shown = "import os; print(sorted({'HF_HUB_OFFLINE', 'RANKWISE_OFFLINE'} & {*os.environ}), file=open('log', 'a'))"
    for run, may in (("a", {}), ("b", {"may_ask_hub": False}), ("c", {"may_ask_hub": True})):
        queue.add(run, experiment(run), **may)
    work(queue, lambda settings, waiting: [sys.executable, "-c", shown])
    assert Path("log").read_text().splitlines() == ["[]", "['HF_HUB_OFFLINE', 'RANKWISE_OFFLINE']", "[]"]


def test_two_workers_at_once_train_each_run_once_and_one_at_a_time(queue):
    for number in range(6):
        queue.add(f"r{number}", experiment(f"r{number}"))
    workers = [worker(queue) for _ in range(3)]
    for one in workers:
        one.join(60)
    assert in_turn(trained()) and sorted(trained()[::2]) == [f"+r{number}" for number in range(6)]


def test_a_run_that_is_added_in_the_last_moment_of_a_worker_is_trained(queue, monkeypatch):
    release, added = Lock.release, []

    def late(self):
        if self.path == queue.worker_lock and not added:
            added.append(queue.add("late", experiment("late")))
        release(self)

    queue.add("first", experiment("first"))
    monkeypatch.setattr(Lock, "release", late)
    work(queue, command)
    assert trained() == ["+first", "-first", "+late", "-late"]


def test_a_training_that_fails_stops_no_other_and_neither_does_a_damaged_entry(queue):
    for run in ("bad", "good"):
        queue.add(run, experiment(run))
    queue.entry("broken").write_text('{"run": "bro')
    queue.entry("other").write_text(queue.entry("good").read_text())
    work(queue, command)
    assert trained() == ["+bad", "-bad", "+good", "-good"]
    assert queue.ended("bad").problem == "no rows" and queue.ended("good").problem is None
    assert "damaged" in queue.ended("broken").problem and 'run "good"' in queue.ended("other").problem


def test_an_entry_that_cannot_be_removed_does_not_keep_the_worker_busy_for_ever(queue, monkeypatch):
    queue.add("good", experiment("good"))
    folder = queue.entry("x").parent
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to("nothing")
    queue.entry("broken").write_text('{"run": "bro')
    monkeypatch.setattr("rankwise.runs.queue.write_atomic", _no_space)
    process = worker(queue)
    process.join(60)
    stays = process.is_alive()
    process.kill()
    assert not stays and trained() == ["+good", "-good"]
    assert [file.name for file in queue.entries()] == ["broken.json"]


def _no_space(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_killed_worker_leaves_a_training_that_the_next_one_waits_for(queue):
    Path("seconds").write_text("1.5")
    for run in ("a", "b"):
        queue.add(run, experiment(run))
    first = worker(queue)
    own = until(lambda: (one := queue.working()) and one.process and not queue.entry("a").exists() and one)
    first.kill()
    first.join()
    assert queue.working() == own and [one.run for one in queue.waiting()] == ["b"]
    work(queue, command)
    assert trained() == ["+a", "-a", "+b", "-b"] and queue.ended("a").problem is None


def test_a_worker_that_was_killed_before_it_removed_the_entry_trains_no_run_twice(queue, monkeypatch):
    queue.add("a", experiment("a"))
    entry = queue.entry("a").read_bytes()
    work(queue, command)
    queue.entry("a").write_bytes(entry)
    queue.present.write_text(json.dumps({"run": "a", "started": "now"}))
    work(queue, command)
    assert trained() == ["+a", "-a"] and not queue.waiting()


def test_a_worker_that_cannot_start_a_training_loses_no_run(queue):
    """Whatever happens between the entry's turn and the start of its process, the entry is still there."""
    queue.add("a", experiment("a"))

    def dies(settings, waiting):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(queue, dies)
    assert [one.run for one in queue.waiting()] == ["a"] and not trained()
    work(queue, command)
    assert trained() == ["+a", "-a"] and not queue.waiting()


def test_a_name_that_is_free_gets_no_folder_at_any_moment(queue, monkeypatch):
    """So whoever is killed while he adds a run leaves none."""
    monkeypatch.setattr(RunDirectory, "claimed", None)
    queue.add("new", experiment("new"))
    assert [one.run for one in queue.waiting()] == ["new"]


def test_a_killed_adder_leaves_nothing_half_written(queue):
    """Killed at any moment, among them that between the file and its name."""

    def add_for_ever():
        for number in range(10**6):
            queue.add(f"r{number}", experiment(f"r{number}"))

    for pause in (0.02, 0.05, 0.11):
        adder = in_process(add_for_ever)
        time.sleep(pause)
        os.kill(adder.pid, signal.SIGKILL)
        adder.join()
        assert len(queue.waiting()) == len(queue.entries())
        for one in queue.waiting():
            queue.remove(one.run)
    queue.add("after", experiment("after"))
    assert [one.run for one in queue.waiting()] == ["after"] and not list(Path("runs").glob("r*"))


def test_what_waits_can_be_taken_back_and_a_name_waits_once(queue):
    for run in ("a", "b"):
        queue.add(run, experiment(run))
    with pytest.raises(RunError, match="is already in the queue"):
        queue.add("a", experiment("a"))
    queue.remove("a")
    with pytest.raises(RunError, match=r'"a" does not wait in the queue. Waiting: b.'):
        queue.remove("a")
    with pytest.raises(RunError, match="does not wait in the queue"):
        queue.remove("../../etc/passwd")
    with pytest.raises(RunError, match="not being trained"):
        queue.stop("b")
    with pytest.raises(ConfigError, match="run"):
        queue.add("../x", experiment())
    work(queue, command)
    assert trained() == ["+b", "-b"]


def test_the_terminal_lists_takes_back_and_adds(queue):
    invoke = CliRunner().invoke
    assert json.loads(invoke(app, ["queue", "--json"]).stdout)["waiting"] == []
    given = ["--model", "tiny-llama", "--data", "rows.jsonl", "--run", "a", "--rank", "3"]
    assert json.loads(invoke(app, ["queue", "add", *given, "--json"]).stdout) == {"added": "a"}
    assert queue.waiting()[0].config.explicit == experiment("a", adapter={"rank": 3})
    assert invoke(app, ["queue"]).stdout.startswith("a  waiting since 20")
    again = invoke(app, ["queue", "add", *given])
    assert again.exit_code == 2 and "is already in the queue" in again.stderr
    assert invoke(app, ["queue", "remove", "a"]).stdout == "Removed a from the queue.\n"
    tracked = invoke(app, ["queue", "add", *given, "--log-to", "nothing"])
    assert tracked.exit_code == 2 and "'nothing'" in tracked.stderr
    assert "work" not in invoke(app, ["queue", "--help"]).stdout.split()


ADDER = """
import sys
from rankwise.config.reading import parse_setting, read_experiment
from rankwise.runs.queue import Queue
for run, steps in (("long", 5000), ("next", 2)):
    words = f"model=tiny-llama data=rows.jsonl run={run} training.steps={steps} model.dtype=float32"
    words += " training.checkpoint_steps=5 data.held_out=2"
    Queue().add(run, read_experiment(None, [parse_setting(word) for word in words.split()]).explicit)
print("added", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_training_goes_on_when_its_starter_is_killed_and_can_be_stopped(library, tmp_path):
    """The real one: started by a process that is killed, seen from another, stopped, and followed by the next."""
    home = library.lay_out(tmp_path / "home", "short")
    with contextlib.chdir(home):
        adder = subprocess.Popen([sys.executable, "-c", ADDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert adder.stdout is not None and adder.stdin is not None and adder.stdout.readline() == b"added\n"
        os.kill(adder.pid, signal.SIGKILL)
        adder.communicate()
        queue = Queue()
        until(lambda: listed("long").status == "running" and list(Path("runs/long/checkpoints").glob("step-*")))
        assert queue.working().run == "long" and [one.run for one in queue.waiting()] == ["next"]
        queue.stop("long")
        until(lambda: queue.ended("next"))
        until(lambda: not queue.worker_lock.exists() or queue.working() is None)
        assert listed("long").status == "interrupted" and list(Path("runs/long/checkpoints").glob("step-*"))
        assert queue.ended("long").problem and queue.ended("next").problem is None
        assert listed("next").status == "finished"


def test_settings_that_nobody_set_stay_unset_so_that_a_classifier_keeps_its_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Queue, "start_worker", lambda self: None)
    given = Experiment(model={"name": "m"}, data={"path": "rows.jsonl"}, run="r", adapter=AdaLoraConfig(budget=4))
    Queue().add("r", given.explicit)
    [waiting] = Queue().waiting()
    assert waiting.config == given and "keep" not in waiting.config.validation.model_fields_set
    assert "epochs" not in waiting.config.explicit.get("training", {})
