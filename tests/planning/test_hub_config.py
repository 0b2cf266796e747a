"""Of a model on the hub a plan fetches its config.json and nothing else, once; and says so where it cannot.

The hub is a small server on this machine that answers as the real one does (hub_server.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rankwise
from kit.hub_server import served, visit
from kit.planning_models import SMALL, shape_of, shape_of_small, written_config
from rankwise.errors import ModelError

PROGRAM = """
import sys
from rankwise.forward.plan import base_of
print(base_of("org/tiny").shape().parameters, "torch" in sys.modules)
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    config = json.dumps(written_config(*SMALL["gpt2"])).encode()

    def answer(path: str) -> bytes | str:
        if path.startswith("/org/bare/"):
            return "EntryNotFound"
        known = {"/": b"", "/org/tiny/resolve/main/config.json": config}
        return known.get(path, "RepoNotFound")

    with served(answer) as found:
        yield found


def test_the_config_alone_is_fetched_and_the_next_plan_asks_nobody(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one in a process of its own."""
    endpoint, asked = hub
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "rankwise"))
    visit(endpoint, tmp_path, monkeypatch)
    count = shape_of("org/tiny").parameters
    assert count == shape_of_small("gpt2").parameters
    assert {line.partition(" ")[2] for line in asked} == {"/", "/org/tiny/resolve/main/config.json"}
    asked.clear()
    environment = os.environ | {
        "PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [str(count), "False"], "the shape is cached, so no torch is needed"
    assert asked == []


def test_what_the_hub_does_not_have_is_told(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit(hub[0], tmp_path, monkeypatch)
    for name, problem in (("none", 'the hub has no model "org/none"'), ("bare", '"org/bare" has no config.json on')):
        with pytest.raises(ModelError, match=problem):
            shape_of(f"org/{name}")


def test_a_hub_that_cannot_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        shape_of("org/tiny")
