"""A stopped run keeps its work: checkpoints go by time in every run, and a stop keeps the step that it waits for."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kit.library import rows
from rankwise.cli.main import app
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError
from rankwise.runs.directory import RunDirectory
from rankwise.training import recording, trainer
from rankwise.training.hooks import MOST_SHARE, SHARE, CheckpointPace

STEPS, AT = 12, 7
RUN = Path("runs/r")
WORDS = (
    "train", "--model", "base", "--data", "rows.jsonl", "--run", "r", "--steps", str(STEPS), "--batch-size", "3",
    "--held-out", "3", "--validate-every", "3", "--keep", "best", "--backend", "eager", "--learning-rate", "0.01",
    "--set", "model.dtype=float32",
)  # fmt: skip
METHODS = [("--rank", "2", "--dropout", "0.3"), ("--method", "adalora", "--budget", "2", "--dropout", "0.3")]


@given(
    st.lists(st.floats(0.01, 200), min_size=1, max_size=400), st.floats(0.001, 100), st.floats(0.1, 20), st.booleans()
)
def test_checkpoints_lose_little_and_cost_little(
    steps: list[float], took: float, minutes: float, expected: bool
) -> None:
    """Whatever steps take: no more than `minutes` and a step are lost, unless checkpoints would take more than 5 %;
    and where one in `minutes` takes less than 1 %, all together do."""
    longest, now, spent, since, wait = 60 * minutes, 0.0, 0.0, 0.0, took if expected else 0.0
    pace = CheckpointPace(None, longest, wait, lambda: now)
    for number, seconds in enumerate(steps):
        due = pace.is_due(number + 1, ahead=seconds)
        now += seconds
        assert now - since <= max(longest, wait / MOST_SHARE) + seconds or due
        if not due:
            continue
        assert now - since >= longest / 5 * (1 - 1e-9), "each is worth something"
        before, now = now, now + took
        pace.has_written(since=before)
        since, spent, wait = now, spent + took, took
    if expected:
        assert spent <= (SHARE if took <= SHARE * longest else MOST_SHARE) * now


def test_steps_decide_where_they_are_given_and_where_a_run_may_go_back() -> None:
    default, backs_off = TrainingConfig(), TrainingConfig(on_divergence="back-off")
    assert (default.checkpoint_interval(10**6), default.checkpoint_seconds) == (None, 300)
    assert [backs_off.checkpoint_interval(steps) for steps in (100, 101, 2000, 10**6)] == [100, 10, 200, 500]
    given_steps = TrainingConfig(checkpoint_steps=7)
    assert (given_steps.checkpoint_interval(50), given_steps.checkpoint_seconds) == (7, None)
    assert TrainingConfig(checkpoint_minutes=0.5).checkpoint_seconds == 30
    with pytest.raises(ConfigError, match="give one"):
        TrainingConfig(checkpoint_steps=7, checkpoint_minutes=1)
    pace = CheckpointPace(7, None, 0.0)
    assert [step for step in range(1, 30) if pace.is_due(step)] == [7, 14, 21, 28]


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_folder)
    Path("rows.jsonl").write_text(rows(10))
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def rankwise(*words: str) -> Any:
    return CliRunner().invoke(app, [*WORDS, *words])


def outcome() -> tuple[bytes, list[dict[str, object]]]:
    """The adapter, and all records without what the clock and the memory say."""
    passing = ("seconds", "tokens_per_second", "resident_bytes")
    records = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in one.items() if key not in passing} for one in records]
    return (RUN / "adapter/adapter_model.safetensors").read_bytes(), kept


def disturbed(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Signals come while step AT is computed."""
    real = trainer.optimizer_step

    def optimizer_step(state: Any, *rest: Any) -> Any:
        for number in numbers if state.step == AT - 1 else ():
            signal.raise_signal(number)
        return real(state, *rest)

    monkeypatch.setattr(trainer, "optimizer_step", optimizer_step)


@pytest.mark.parametrize(("method", "number"), zip(METHODS, (signal.SIGTERM, signal.SIGINT), strict=True))
def test_a_short_run_that_is_told_to_stop_goes_on_at_the_step_that_it_was_at(
    method: tuple[str, ...], number: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rankwise(*method).exit_code == 0
    whole = outcome()
    shutil.rmtree("runs")
    with monkeypatch.context() as patch:
        disturbed(patch, number)
        stopped = rankwise(*method)
    assert stopped.exit_code == 128 + number, stopped.output
    assert f"--resume to continue from step {AT}, or --restart" in stopped.stderr
    assert RunDirectory(RUN).steps_saved == [AT] and not (RUN / "adapter").exists()
    resumed = rankwise(*method, "--resume")
    assert f"continuing after step {AT}" in resumed.stderr
    assert outcome() == whole


def test_who_asks_twice_is_heeded_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed(monkeypatch, signal.SIGINT, signal.SIGTERM)
    stopped = rankwise()
    assert stopped.exit_code == 143 and RunDirectory(RUN).steps_saved == []
    assert [row["step"] for row in map(json.loads, (RUN / "metrics.jsonl").open())][-1] == AT - 1


def test_a_short_run_that_is_killed_loses_what_came_after_the_last_checkpoint(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes ten seconds and a checkpoint none."""
    assert rankwise().exit_code == 0
    whole = outcome()
    shutil.rmtree("runs")
    made, real = list[int](), trainer.optimizer_step

    def optimizer_step(state: Any, *rest: Any) -> Any:
        assert state.step < AT, "as a bug or a kill"
        made.append(state.step)
        return real(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "CheckpointPace", partial(CheckpointPace, clock=lambda: 10.0 * len(made)))
        patch.setattr(trainer, "optimizer_step", optimizer_step)
        assert rankwise("--set", "training.checkpoint_minutes=1").exit_code == 1
    assert RunDirectory(RUN).steps_saved == [3, 6], "a fifth of a minute lies between them, and a step"
    assert rankwise("--resume").exit_code == 0, "however often checkpoints are written"
    assert outcome() == whole
