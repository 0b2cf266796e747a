"""Every kind of training that one process does, several do: the same weights, metrics and results."""

from __future__ import annotations

from pathlib import Path

import pytest

from breadth import CASES, EVERY, breadth_of, distance, prepare_home, run_all, run_case
from worlds import together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows, and what two processes came to in each case."""
    made = tmp_path_factory.mktemp("home")
    prepare_home(made)
    for rank, ended in enumerate(together(run_all, 2, made, list(EVERY))):
        assert ended.code == 0, (rank, ended.errors[-3000:])
    (made / "runs").rename(made / "runs-of-two")
    return made


@pytest.mark.parametrize("name", EVERY)
def test_two_processes_are_one(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("RANKWISE_CACHE", str(home / "cache-alone"))
    alone = run_case(name)
    for rank in range(2):
        assert distance(alone, breadth_of(home, name, rank)) <= (1e-6 if name in CASES else 1e-3)
