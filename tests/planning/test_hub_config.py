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
from kit.hub_server import served
from kit.planning_models import SMALL, shape_of_small, written_config

PROGRAM = """
import sys
from rankwise.errors import ModelError
from rankwise.forward.plan import shape_of
for name in sys.argv[1:]:
    try:
        print(shape_of(name).parameters)
    except ModelError as error:
        print(error)
print("torch" in sys.modules)
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


def planned(names: str, endpoint: str, home: Path) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | {
        "PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "HF_ENDPOINT": endpoint, "HF_HOME": str(home),
        "RANKWISE_CACHE": str(home / "rankwise"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names.split()], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()


def test_the_config_alone_is_fetched_and_the_next_plan_asks_nobody(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    count = str(shape_of_small("gpt2").parameters)
    assert planned("org/tiny", endpoint, tmp_path) == [count, "True"]
    assert {line.partition(" ")[2] for line in asked} == {"/", "/org/tiny/resolve/main/config.json"}
    asked.clear()
    assert planned("org/tiny", endpoint, tmp_path) == [count, "False"], "the shape is cached, so no torch is needed"
    assert asked == []


def test_what_the_hub_does_not_have_is_told(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    none, bare, _ = planned("org/none org/bare", hub[0], tmp_path)
    assert 'the hub has no model "org/none"' in none and '"org/bare" has no config.json on the hub' in bare


def test_a_hub_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    assert "the hub cannot be reached" in planned("org/tiny", "http://127.0.0.1:9", tmp_path)[0]
