"""Every kind of training that one process does, several do: the same weights, metrics and results."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.breadth import CASES, EVERY, Breadth, breadth_of, distance, prepare_home, run_all, run_case
from kit.breadth_mistakes import MISTAKES
from kit.worlds import together

pytestmark = pytest.mark.slow
SAME = {name: 1e-6 if name in CASES else 1e-3 for name in EVERY}
"""Weights in fewer bits are computed in float32."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows, and what two processes came to in each case, and with each mistake."""
    made = tmp_path_factory.mktemp("home")
    prepare_home(made)
    given = [*((name, None) for name in EVERY), *((name, mistake) for mistake, (name, _) in MISTAKES.items())]
    for rank, ended in enumerate(together(run_all, 2, made, given, timeout=600)):
        assert ended.code == 0, (rank, ended.errors[-3000:])
    (made / "runs").rename(made / "runs-of-two")
    return made


@pytest.fixture(scope="module")
def alone(home: Path) -> dict[str, Breadth]:
    """What one process came to, as far as it was asked for."""
    return {}


def of_one(name: str, home: Path, alone: dict[str, Breadth], monkeypatch: pytest.MonkeyPatch) -> Breadth:
    if name not in alone:
        monkeypatch.chdir(home)
        monkeypatch.setenv("RANKWISE_CACHE", str(home / "cache-alone"))
        alone[name] = run_case(name)
    return alone[name]


@pytest.mark.parametrize("name", EVERY)
def test_two_processes_are_one(
    name: str, home: Path, alone: dict[str, Breadth], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = of_one(name, home, alone, monkeypatch)
    for rank in range(2):
        two = breadth_of(home, name, rank)
        assert isinstance(two, Breadth) and distance(one, two) <= SAME[name]
    if name == "forgetting":
        assert 0 < one.results["results"]["budget"]["strength"] < 1, "it is scaled, and measured again"
    if name == "tune":
        assert one.results["tuning"]["trials"]
    if name == "back off":
        assert len(one.results["back_offs"]) == 1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(
    mistake: str, home: Path, alone: dict[str, Breadth], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = of_one(MISTAKES[mistake][0], home, alone, monkeypatch), breadth_of(home, mistake, 0)
    if isinstance(two, str):
        assert "has other weights than the first process" in two
    else:
        assert distance(one, two) > 1e-4
