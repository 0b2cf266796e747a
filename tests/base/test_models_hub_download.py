"""A hub model that is not cached is fetched when it is named, and only then; the next load asks nobody.

The hub is a small server on this machine that answers as the real one does (hub_server.py); everything else is real.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.hub_server import COMMIT, served

LOAD = """
import sys
from rankwise.base.loading import load
from rankwise.runs.records import StatusMessage
for name in sys.argv[1:]:
    said = []
    model = load(name, said.append)
    print(model.source.name, model.source.where, len([e for e in said if isinstance(e, StatusMessage)]), flush=True)
"""


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[tuple[str, list[str]]]:
    there = [*(file.name for file in tiny_folder.iterdir()), "pytorch_model.bin", "modeling_tiny.py"]
    oids = {file: hashlib.sha1(file.encode()).hexdigest() for file in there}
    tree = [{"type": "file", "path": file, "size": 1, "oid": oid} for file, oid in oids.items()]
    model = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": file} for file in there]}

    def answer(path: str) -> bytes | str:
        file = tiny_folder / path.split("?")[0].rpartition("/")[2]
        if path == "/":
            return b""
        if path.startswith("/api/models/org/tiny/"):
            return json.dumps(tree if path.startswith("/api/models/org/tiny/tree/") else model).encode()
        known = path.startswith("/org/tiny/resolve/") and file.is_file()
        return file.read_bytes() if known else "RepoNotFound"

    with served(answer) as found:
        yield found


def load(names: list[str], address: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", LOAD, *names], env=environment, capture_output=True, text=True)


def test_a_named_model_is_fetched_once_without_pickles_or_code(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    first = load(["org/tiny"], address, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == ["org/tiny", "hub,", "commit", COMMIT[:12], "1"]
    assert any("model.safetensors" in line for line in asked)
    assert not any(unwanted in line for line in asked for unwanted in ("pytorch_model.bin", "modeling_tiny.py"))
    asked.clear()
    second = load(["org/tiny", "org/tinny"], address, tmp_path)
    assert second.stdout.split() == ["org/tiny", "hub,", "commit", COMMIT[:12], "0"], second.stderr
    assert not any("tiny" in line for line in asked)
    assert 'the hub has no model "org/tinny"' in second.stderr.splitlines()[-1]


def test_a_hub_that_does_not_answer_is_told(tmp_path: Path) -> None:
    refused = load(["org/tiny"], "http://127.0.0.1:9", tmp_path)
    assert "the hub cannot be reached" in refused.stderr.splitlines()[-1]
