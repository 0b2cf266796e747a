"""The command: what it refuses before it loads anything, and a server that is started, asked and stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.command import rankwise
from rankwise.commands.serve import hangup, is_mistake


@pytest.fixture
def in_home(home, monkeypatch):
    monkeypatch.chdir(home)


def refused(*words):
    result = rankwise("serve", *words, "--json")
    problem = json.loads(result.stdout)
    assert result.exit_code == problem["exit_code"] == 2, result.output
    return problem["error"]


def test_a_port_in_use_and_another_machine_without_a_key(in_home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Choose another with --port" in refused("lora", "--port", str(taken.getsockname()[1]))
    assert "a key is needed" in refused("lora", "--host", "0.0.0.0")
    several = refused("--load-from", "nowhere", "--prefix-cache", "many")
    assert all(one in several for one in ("name runs", "is not a folder", "--prefix-cache 'many'", "0 keeps none"))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_what_cannot_be_served_is_refused_by_name(library, tmp_path, monkeypatch):
    home = library.lay_out(tmp_path / "home", "lora", "full")
    monkeypatch.chdir(home)
    assert 'run "full" is no adapter but a model of its own' in refused("lora", "full", "--port", free_port())
    assert "no run" in refused("nothing", "--port", free_port()).lower()
    foreign = home / "foreign"
    shutil.copytree(home / "runs" / "lora" / "adapter", foreign)
    (foreign / "base_model.json").unlink()
    settings = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "other/base"}))
    assert 'names the base model "other/base"' in refused("lora", "foreign", "--port", free_port())
    assert "under the name" in refused("lora", "lora", "--port", free_port())


def test_a_closed_terminal_stops_a_server_as_other_signals_do():
    stopped, before = [], signal.getsignal(signal.SIGHUP)
    with hangup(lambda number, frame: stopped.append(number)):
        signal.raise_signal(signal.SIGHUP)
    assert stopped == [signal.SIGHUP] and signal.getsignal(signal.SIGHUP) is before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by nohup
    with hangup(lambda number, frame: stopped.append(number)):
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert len(stopped) == 1


def test_the_log_has_no_traceback_of_an_answer_that_was_cut_off():
    def record(error):
        return logging.LogRecord("uvicorn.error", 40, "", 0, "", (), (type(error), error, None))

    assert not is_mistake(record(asyncio.CancelledError())) and is_mistake(record(ValueError()))
    assert is_mistake(logging.LogRecord("uvicorn.error", 40, "", 0, "", (), None))


@pytest.mark.slow
def test_a_server_is_started_asked_and_stopped(in_home):
    """An answer that is being written ends as if there had been no signal."""
    words = [sys.executable, "-m", "rankwise", "serve", "lora", "--json", "--port", free_port()]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"RANKWISE_API_KEY": "secret", "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        ready = json.loads(process.stdout.readline())
        assert [one["id"] for one in ready["models"]] == ["tiny-llama", "lora"]
        body = {"model": "lora", "messages": [{"role": "user", "content": "What is land 1?"}], "temperature": 0}

        def asked(**more):
            return urllib.request.urlopen(urllib.request.Request(
                f"{ready['url']}/chat/completions", json.dumps(body | more).encode(),
                {"content-type": "application/json", "authorization": "Bearer secret"},
            ))  # fmt: skip

        answer = json.loads(asked().read())
        with asked(stream=True, max_tokens=200, logit_bias={"2": -100}) as pieces:
            first = pieces.readline()
            process.send_signal(signal.SIGTERM)
            rest = pieces.read()
        _, remarks = process.communicate(timeout=60)
    assert answer["choices"][0]["message"]["content"]
    assert first.startswith(b"data: ") and rest.endswith(b"data: [DONE]\n\n")
    assert process.returncode == 0 and remarks.rstrip().endswith("stopped.") and "secret" not in remarks
    assert "Traceback" not in remarks


@pytest.fixture
def with_classifiers(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "films", "numbers"))


@pytest.mark.parametrize(("words", "why"), [
    (("films", "lora"), 'run "films" at POST /v1/classify and run "lora" at POST /v1/chat/completions. Serve them'),
    (("films", "--alias", "other"), "classifiers are served without --max-new-tokens, --load-from"),
    (("films", "numbers", "--unconstrained"), "classifiers are served without --max-new-tokens, --load-from"),
    (("films", "films"), 'several models would be served under the name films'),
])  # fmt: skip
def test_what_does_not_go_with_a_classifier_is_refused(with_classifiers, words, why):
    assert why in refused(*words, "--port", free_port())


@pytest.mark.slow
def test_a_server_of_classifiers_answers_what_was_asked_before_it_is_stopped(with_classifiers):
    words = [sys.executable, "-m", "rankwise", "serve", "films", "numbers", "--json", "--port", free_port()]
    with subprocess.Popen(
        [*words, "--max-batch", "1", "--dtype", "float32"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process, ThreadPoolExecutor(6) as clients:  # fmt: skip
        ready = json.loads(process.stdout.readline())
        assert [one["id"] for one in ready["models"]] == ["films", "numbers"]

        def asked(number):
            body = {"model": ("films", "numbers")[number % 2], "input": ["the film is kind"] * 100}
            url, headers = f"{ready['url']}/classify", {"content-type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
                return json.loads(answer.read())["data"]

        going = [clients.submit(asked, number) for number in range(6)]
        metrics = ready["url"].removesuffix("v1") + "metrics"
        while b"requests_total 6" not in urllib.request.urlopen(metrics).read():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [len(one.result()) for one in going] == [100] * 6
        _, remarks = process.communicate(timeout=60)
    assert process.returncode == 0 and remarks.rstrip().endswith("stopped.") and "Traceback" not in remarks
