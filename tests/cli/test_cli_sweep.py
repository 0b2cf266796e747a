"""`rankwise sweep`: every combination once, as ordinary runs; it goes on where it stopped; the page shows the curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.command import rankwise
from kit.library import rows
from rankwise.commands import sweep as sweeping
from rankwise.config.sweep import grid, parse_axis
from rankwise.errors import ConfigError, TrainingError
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.sweeps import SweepRecord, SweptTrial

pytest.importorskip("optuna")
TRAINING = ("--model", "tiny", "--data", "rows.jsonl", "--steps", "2", "--batch-size", "2", "--held-out", "4",
            "--backend", "eager", "--set", "model.dtype=float32")  # fmt: skip
GRID = ("--over", "training.learning_rate=0.001,0.01", "--over", "adapter.rank=2,4")


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text(rows(12))
    (tmp_path / "tiny").symlink_to(tiny_folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swept(*words: str) -> Any:
    return rankwise("sweep", *TRAINING, "--run", "s", *words, "--json")


def test_a_grid_is_trained_once_each_and_goes_on_where_it_stopped(home, monkeypatch):
    trained, train = [], sweeping.train

    def stops(experiment: Any, **how: Any) -> Any:
        trained.append(experiment.run)
        if len(trained) == 3:
            raise KeyboardInterrupt
        if len(trained) == 5:
            raise TrainingError("the loss is nan")
        return train(experiment, **how)

    monkeypatch.setattr(sweeping, "train", stops)
    assert swept(*GRID).exit_code == 130
    result = swept(*GRID)
    assert result.exit_code == 0, (result.output, result.exception)
    assert trained == ["s-001", "s-002", "s-003", "s-003", "s-004"]
    told = json.loads(result.stdout)
    assert [(one["values"]["training.learning_rate"], one["values"]["adapter.rank"]) for one in told["trials"]] == [
        (0.001, 2), (0.001, 4), (0.01, 2), (0.01, 4)
    ]  # fmt: skip
    for one in told["trials"][:3]:
        run = RunSnapshot.read(one["run"])
        assert run.experiment.training.learning_rate == one["values"]["training.learning_rate"]
        assert run.manifest.results is not None and run.manifest.results.validation_loss_after == one["loss"]
    assert told["trials"][3]["loss"] is None
    assert told["best"]["loss"] == min(one["loss"] for one in told["trials"][:3])
    page = (home / "sweeps" / "s" / "sweep.html").read_text()
    assert "training.learning_rate" in page and "<svg" in page and told["best"]["run"] in page
    again = swept(*GRID)
    assert again.exit_code == 0 and len(trained) == 5 and json.loads(again.stdout) == told
    other = swept(*GRID, "--seed", "1")
    assert other.exit_code == 2 and "other settings" in other.output


def test_the_minutes_that_are_left_are_those_of_the_trials_so_far():
    assert sweeping._progress(2, 6, {"adapter.rank": 4}, 120.0, 2) == "trial 3 of 6, about 4 min left: adapter.rank=4"
    assert sweeping._progress(0, 6, {"adapter.rank": 4}, 0.0, 0) == "trial 1 of 6: adapter.rank=4"


def test_a_number_of_trials_is_taken_from_the_range(home):
    over = ("--over", "training.learning_rate=1e-3..1e-1", "--trials")
    first = json.loads(swept(*over, "2").stdout)["trials"]
    more = json.loads(swept(*over, "3").stdout)["trials"]
    assert more[:2] == first and len(more) == 3
    assert all(1e-3 <= one["values"]["training.learning_rate"] <= 1e-1 for one in more)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--over", "training.learning_rate=0.1..0.01"), "does not go from a number to a higher one"),
        (("--over", "adapter.rank"), "not of the form key=values"),
        (("--over", "adapter.rank=4,4"), "names a value twice"),
        (("--over", "adapter.rnk=4,8"), "rnk"),
        (("--over", "adapter.rank=4,0"), "adapter.rank"),
        (("--over", "adapter.rank=4,8", "--over", "adapter.rank=2"), "twice"),
        (("--over", "data.held_out=4,8"), "cannot be varied"),
        (("--over", "adapter.rank=4,8", "--held-out", "0"), "--validation-data"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(home, words, said):
    result = swept(*words)
    assert result.exit_code == 2 and said in result.output, result.output
    assert not (home / "runs").exists() and not (home / "sweeps").exists()


@given(st.floats(1e-6, 1), st.floats(1.01, 1e4))
def test_a_grid_of_a_range_has_its_ends_and_grows(low, ratio):
    low = float(f"{low:.3g}")
    axis = parse_axis(f"training.learning_rate={low!r}..{low * ratio!r}")
    points = axis.points
    assert points[0] == pytest.approx(low, rel=1e-3) and points[-1] == pytest.approx(low * ratio, rel=1e-3)
    assert list(points) == sorted(points)
    if axis.log:
        assert points[2] ** 2 == pytest.approx(points[0] * points[-1], rel=5e-3)


def test_values_are_read_as_people_write_them():
    assert parse_axis("a.b=1e-4,4,true,x").values == (1e-4, 4, True, "x")
    assert parse_axis("a.b=4..64").points == (4, 8, 16, 32, 64)
    assert grid([parse_axis("a=1,2"), parse_axis("b=3,4")])[1] == {"a": 1, "b": 4}
    with pytest.raises(ConfigError):
        parse_axis("a=x..y")


def test_the_flat_values_are_those_within_a_percent_of_the_least():
    losses = [(1, 1.05), (2, 1.009), (4, 1.0), (8, 1.2), (2, 1.3), (16, None)]
    trials = [SweptTrial(number=at, run=f"r{at}", values={"k": key, "other": at}, loss=loss)
              for at, (key, loss) in enumerate(losses)]  # fmt: skip
    record = SweepRecord(name="n", axes={"k": "1, 2", "other": ""}, method="grid", planned=6, trials=tuple(trials))
    assert record.curve("k") == [(1, 1.05), (2, 1.009), (4, 1.0), (8, 1.2)]
    assert record.flat("k") == [2, 4]
    assert record.best is not None and record.best.run == "r2"
