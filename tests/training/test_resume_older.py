"""A run that an earlier version began goes on by the command that began it, although there is more to say now."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

import rankwise
from kit.small_runs import as_first_format
from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError
from rankwise.runs.records import StepRecord

LATER_SETTINGS = (
    "group", "prompt", "completion", "ignore_columns", "alternatives", "delimiter", "encoding", "sheet",
)  # fmt: skip
LATER_FACTS = ("hold_out", "labels", "distinct_labels", "unused_columns", "advice")


class Stopped(Exception):
    pass


def stop(event):
    if isinstance(event, StepRecord) and event.step == 3:
        raise Stopped


@pytest.fixture
def begun(tiny_folder, tmp_path, monkeypatch):
    """How a run is begun, of which two steps are saved."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{n},What is land {n}?,It is town {n}.\n" for n in range(12))
    Path("rows.csv").write_text("id,prompt,completion\n" + rows)

    def experiment(**data):
        training = TrainingConfig(steps=4, batch_size=3, checkpoint_steps=2)
        data = {"path": "rows.csv", "held_out": 3, **data}
        return rankwise.Experiment(model=str(tiny_folder), data=data, training=training, run="older")

    with contextlib.suppress(Stopped):
        rankwise.train(experiment(), callback=stop)
    return experiment


def rewrite(name, change):
    path = Path("runs/older") / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_an_earlier_version_wrote_it():
    def data_report(content):
        for name in LATER_FACTS:
            content.pop(name)
        for file in content["files"]:
            file.pop("layout")
            file["licence"] = "MIT"  # it was read out of sentences then
        content["licence"] = "MIT"

    as_first_format(Path("runs/older/checkpoints/step-2"))
    rewrite("config.json", lambda content: [content["data"].pop(name) for name in LATER_SETTINGS])
    rewrite("data_report.json", data_report)


def test_an_older_run_goes_on_by_its_own_command_with_the_rows_that_it_held_out(begun):
    as_an_earlier_version_wrote_it()
    with pytest.raises(RunError, match="held_out_order was 'seed' and is now 'last'"):
        rankwise.train(begun(held_out_order="last"), resume=True)
    trained = rankwise.train(begun(), resume=True)
    assert (trained.manifest.status, trained.manifest.resumed[0].step) == ("finished", 2)
    assert trained.manifest.data.validation_sequences == 3
    assert trained.snapshot.experiment.data.held_out_order == "seed"
