"""The command: what it refuses before it loads anything, and a server that is started, asked and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app


@pytest.fixture
def in_home(home, monkeypatch):
    monkeypatch.chdir(home)


def refused(*words):
    result = CliRunner().invoke(app, ["serve", *words, "--json"])
    problem = json.loads(result.stdout)
    assert result.exit_code == problem["exit_code"] == 2, result.output
    return problem["error"]


def test_a_port_in_use_and_another_machine_without_a_key(in_home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Choose another with --port" in refused("lora", "--port", str(taken.getsockname()[1]))
    assert "a key is needed" in refused("lora", "--host", "0.0.0.0")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_what_cannot_be_served_is_refused_by_name(library, tmp_path, monkeypatch):
    home = library.lay_out(tmp_path / "home", "lora", "full")
    monkeypatch.chdir(home)
    assert 'run "full" is no adapter but a model of its own' in refused("lora", "full", "--port", free_port())
    assert "no run" in refused("nothing", "--port", free_port()).lower()
    assert "under the name" in refused("lora", "lora", "--port", free_port())


@pytest.mark.slow
def test_a_server_is_started_asked_and_stopped(in_home):
    words = [sys.executable, "-m", "rankwise", "serve", "lora", "--json", "--port", free_port()]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"RANKWISE_API_KEY": "secret", "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        ready = json.loads(process.stdout.readline())
        assert [one["id"] for one in ready["models"]] == ["tiny-llama", "lora"]
        body = {"model": "lora", "messages": [{"role": "user", "content": "What is land 1?"}], "temperature": 0}
        request = urllib.request.Request(
            f"{ready['url']}/chat/completions", json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": "Bearer secret"},
        )  # fmt: skip
        answer = json.loads(urllib.request.urlopen(request).read())
        process.send_signal(signal.SIGTERM)
        _, remarks = process.communicate(timeout=60)
    assert answer["choices"][0]["message"]["content"]
    assert process.returncode == 0 and remarks.rstrip().endswith("stopped.") and "secret" not in remarks
    assert "Traceback" not in remarks
