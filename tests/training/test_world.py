"""N processes that share the rows of each step are one process: the same weights, losses, validations and best step."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from kit.worlds import (
    CARDS,
    CASES,
    DEVICES,
    Learned,
    distance,
    due_after_steps,
    learn,
    learn_all,
    learned_by,
    skip_without_cards,
    together,
)
from rankwise.rows.encoded.dealing import deal
from rankwise.training.world import ONE_PROCESS

pytestmark = pytest.mark.slow
IN_FULL = [name for name, case in CASES.items() if case.dtype == torch.float64]
SMALL = ["lora", "adalora packed", "fewer rows than processes", "best"]
"""For four processes."""


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(device: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What two and four processes learned, as far as there are cards."""
    made = {2: tmp_path_factory.mktemp("two"), 4: tmp_path_factory.mktemp("four")}
    for size, names in ((2, list(CASES)), (4, SMALL)):
        if device == "cuda" and size > CARDS:
            continue
        for rank, ended in enumerate(together(learn_all, size, made[size], (names, None, device))):
            assert ended.code == 0, (rank, ended.errors[-3000:])
    return made


@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in IN_FULL), *((4, name) for name in SMALL)])
def test_several_processes_are_one(folders: dict[int, Path], size: int, name: str, device: str, tmp_path: Path) -> None:
    skip_without_cards(device, size)
    alone = learn(CASES[name].on(device), ONE_PROCESS, tmp_path)
    for rank in range(size):
        learned = learned_by(folders[size], name, rank)
        assert distance(alone, learned) <= 1e-6
        assert learned.result_step == alone.result_step
        assert [step[2:] for step in learned.steps] == [step[2:] for step in alone.steps]
    if CASES[name].keep == "best":
        assert alone.result_step < CASES[name].steps, "another step than the last is the best"


@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_FULL])
def test_in_float32_they_are_one_but_for_rounding(
    folders: dict[int, Path], name: str, device: str, tmp_path: Path
) -> None:
    """Adam makes a whole step of a gradient that is nothing but rounding, so that losses are compared."""
    alone = learn(CASES[name].on(device), ONE_PROCESS, tmp_path)
    first, second = (learned_by(folders[2], name, rank) for rank in range(2))
    for mine, theirs in zip([*alone.validations, *losses(alone)], [*first.validations, *losses(first)], strict=True):
        assert abs(mine - theirs) <= 1e-4 * mine
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


def losses(learned: Learned) -> list[float]:
    return [step[0] for step in learned.steps]


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("lora", "mean of means"), ("lora", "norm of its own"), ("adalora", "importance of its own")],
)
def test_a_mistake_in_the_sums_is_noticed(name: str, mistake: str, device: str, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = learn(CASES[name].on(device), ONE_PROCESS, tmp_path / "alone")
    ended = together(learn_all, 2, tmp_path, ([name], mistake, device))
    if any(one.code for one in ended):
        assert any("has other weights than the first process" in one.errors for one in ended)
    else:
        assert distance(alone, learned_by(tmp_path, name, 0)) > 1e-3


def test_all_know_before_a_step_that_a_checkpoint_follows_it(tmp_path: Path) -> None:
    assert [ended.code for ended in together(due_after_steps, 2, tmp_path, (0, 9, 0))] == [0, 0]
    assert [json.loads((tmp_path / f"due-{rank}").read_text()) for rank in range(2)] == [[True, False, True]] * 2


@settings(max_examples=draws(200), deadline=None)
@given(costs=st.lists(st.integers(1, 1000), max_size=60), shares=st.integers(1, 9))
def test_rows_are_dealt_once_each_and_evenly(costs: list[int], shares: int) -> None:
    dealt = deal(costs, shares)
    assert len(dealt) == shares
    assert Counter(row for rows in dealt for row in rows) == Counter(range(len(costs)))
    loads = [sum(costs[row] for row in rows) for rows in dealt]
    assert max(loads) <= sum(costs) / shares + max(costs, default=0)
    assert all(rows == sorted(rows) for rows in dealt)
