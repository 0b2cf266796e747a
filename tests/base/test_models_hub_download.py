"""A hub model that is not cached is fetched when it is named, and only then; the next load asks nobody.

The hub is a small server on this machine that answers as the real one does (hub_server.py); everything else is real.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.hub_server import COMMIT, served, visit
from rankwise.base.loading import load
from rankwise.errors import ModelError
from rankwise.runs.records import StatusMessage


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


def test_a_named_model_is_fetched_once_without_pickles_or_code(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = hub
    visit(address, tmp_path, monkeypatch)
    for messages in (1, 0):
        asked.clear()
        heard: list[object] = []
        source = load("org/tiny", heard.append).source
        assert (source.name, source.where) == ("org/tiny", f"hub, commit {COMMIT[:12]}")
        assert len([event for event in heard if isinstance(event, StatusMessage)]) == messages
        assert any("model.safetensors" in line for line in asked) == any("tiny" in line for line in asked) == messages
        assert not any(unwanted in line for line in asked for unwanted in ("pytorch_model.bin", "modeling_tiny.py"))
    with pytest.raises(ModelError, match='the hub has no model "org/tinny"'):
        load("org/tinny")


def test_a_hub_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load("org/tiny")
