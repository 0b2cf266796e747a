"""Trackers have what metrics.jsonl has, no text and no step twice, and a run does not depend on them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from kit.command import printed
from kit.interrupted import interrupt
from kit.tracked import READERS
from rankwise import tracking
from rankwise.commands.train import train
from rankwise.config.experiment import TRACKERS, Experiment, TrackingConfig
from rankwise.errors import ConfigError, RankwiseError
from rankwise.runs.records import StepRecord, WarningMessage
from rankwise.tracking import HISTOGRAM, NOT_LOGGED, valid, values_of

pytestmark = pytest.mark.slow
WITH_LIBRARY = [name for name in TRACKERS if find_spec(name) is not None]
SECRET = "Sesame7421"
CHANGING = {"train/seconds", "train/tokens_per_second", "train/resident_bytes"}
"""What no two computations of a step have in common."""


def needs(name):
    missing = name not in WITH_LIBRARY
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))


EACH = [needs(name) for name in TRACKERS]


@pytest.fixture(scope="module", autouse=True)
def own_trackio(tmp_path_factory):
    """trackio reads this variable when it is imported."""
    os.environ.setdefault("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))


def experiment(run, log_to=(), **settings):
    return Experiment.model_validate(
        {
            "model": {"name": "tiny-llama", "dtype": "float32"}, "run": run,
            "data": {"path": "rows.jsonl", "held_out": 4, "system": f"Answer as {SECRET} does."},
            "adapter": {"method": "adalora", "budget": 2, "targets": "q_proj,v_proj"},
            "training": {"steps": 12, "batch_size": 2, "learning_rate": 0.01, "backend": "eager",
                         "checkpoint_steps": 4},
            "validation": {"steps": 4, "prompts": [f"Who is {SECRET}?"]},
            "tracking": {"log_to": log_to},
        } | settings
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    """A run with every tracker that is installed, beside the same without any."""
    folder = library.lay_out(tmp_path_factory.mktemp("tracked") / "work")
    row = {"prompt": f"Where is {SECRET}?", "completion": f"{SECRET} is far away."}
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    warnings = []
    with contextlib.chdir(folder):
        train(experiment("with", WITH_LIBRARY), callback=lambda event: _warned(event, warnings))
        train(experiment("without"))
    assert warnings == []
    return folder / "runs"


def _warned(event, warnings):
    if isinstance(event, WarningMessage) and "logging to" in event.text:
        warnings.append(event.text)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers_in(folder):
    every = {}
    for row in rows_of(folder):
        for name, value in values_of(row).items():
            if name != HISTOGRAM:
                every.setdefault(name, []).append((row["step"], value))
    return every


def logged(name, folder):
    """Without what a tracker has of the end of the run."""
    of_log = numbers_in(folder)
    return {key: points for key, points in READERS[name](folder).items() if key in of_log or "/" not in key}


def in_its_precision(name, numbers):
    """TensorBoard stores float32."""
    return {
        key: [(step, float(np.float32(value)) if name == "tensorboard" else value) for step, value in points]
        for key, points in numbers.items()
    }


@pytest.mark.parametrize("name", EACH)
def test_a_tracker_has_every_number_of_the_log_once(name, trained):
    numbers = numbers_in(trained / "with")
    assert {"train/loss", "train/grad_norm", "eval/loss", "ranks/mean"} <= set(numbers)
    assert len(numbers["train/loss"]) == 12 and len(numbers["eval/loss"]) == 4
    assert logged(name, trained / "with") == in_its_precision(name, numbers)


@pytest.mark.skipif("tensorboard" not in WITH_LIBRARY, reason="tensorboard is not installed")
def test_ranks_are_a_histogram_with_a_bar_for_each_rank(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "with" / "tracking" / "tensorboard"), {"histograms": 0, "tensors": 0})
    events.Reload()
    rows = [row for row in rows_of(trained / "with") if row["kind"] == "ranks"]
    for event, row in zip(events.Histograms(HISTOGRAM), rows, strict=True):
        value, ranks = event.histogram_value, list(row["ranks"].values())
        assert (event.step, value.num, value.sum) == (row["step"], len(ranks), sum(ranks))
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    weights = json.loads((trained / "with" / "manifest.json").read_text())["result_sha256"]
    assert weights["adapter/adapter_model.safetensors"] in texts["result/text_summary"]
    assert "| training.steps | 12 |" in texts["settings/text_summary"] and NOT_LOGGED in texts["settings/text_summary"]


@pytest.mark.parametrize("name", EACH)
def test_the_end_has_the_results_and_the_forecast(name, trained):
    manifest = json.loads((trained / "with" / "manifest.json").read_text())
    if name == "wandb":  # they are its summary, which is no history
        content = next((trained / "with" / "tracking").rglob("*.wandb")).read_bytes()
        assert all(word in content for word in (b"result/validation_loss_after", b"forecast/peak_bytes"))
        return
    read = READERS[name](trained / "with")
    after, forecast = manifest["results"]["validation_loss_after"], manifest["forecast"]["peak_bytes"]
    assert read["result/validation_loss_after"] == [(12, pytest.approx(after, rel=1e-6))]
    assert read["forecast/peak_bytes"] == [(12, pytest.approx(forecast, rel=1e-6))]


def test_no_row_and_no_text_is_logged(trained):
    folders = [trained / "with" / "tracking", Path(os.environ["TRACKIO_DIR"])]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert len(files) >= len(WITH_LIBRARY)
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert SECRET in (trained / "with" / "config.json").read_text(), "the run itself has the texts"


def test_the_run_is_the_same_with_and_without(trained):
    assert same_but_for_tracking(trained / "with", trained / "without")


def same_but_for_tracking(one, other):
    """The bytes of the result and the rows; the log but for time and memory, which no two runs have in common."""
    files = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "data_report.json")
    settings = [json.loads((run / "config.json").read_text()) for run in (one, other)]
    for each in settings:
        del each["tracking"], each["run"]
    steps = [
        [{key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second", "resident_bytes")}
         for row in rows_of(run)] for run in (one, other)
    ]  # fmt: skip
    same_files = all((one / file).read_bytes() == (other / file).read_bytes() for file in files)
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (one, other)]
    warnings = [manifest["warnings"] for manifest in manifests]
    return same_files and settings[0] == settings[1] and steps[0] == steps[1] and warnings[0] == warnings[1]


@pytest.mark.parametrize("name", EACH)
def test_a_run_that_goes_on_has_no_step_twice_and_none_is_missing(name, library, tmp_path):
    # it is stopped at step 7, after the checkpoint of step 4, so the tracker has steps that are computed again
    run, folder = f"again-{name}", library.lay_out(tmp_path / "work")
    with contextlib.chdir(folder):
        interrupt(experiment(run, [name]), 7)
        if name == "tensorboard":  # what a kill may leave of the last event
            [file] = Path(f"runs/{run}/tracking/tensorboard").glob("events*")
            file.write_bytes(file.read_bytes()[:-11])
        before = READERS[name](Path("runs") / run)
        assert before["train/loss"][-1][0] > 4, "nothing was ahead of the checkpoint"
        train(experiment(run, [name]), resume=True)
        read, numbers = logged(name, Path("runs") / run), in_its_precision(name, numbers_in(Path("runs") / run))
    steady = {key: points for key, points in numbers.items() if key not in CHANGING}
    assert {key: points for key, points in read.items() if key not in CHANGING} == steady
    assert [step for step, _ in read["train/seconds"]] == list(range(1, 13))


@pytest.mark.parametrize("name", EACH)
def test_a_run_is_logged_afterwards_and_a_second_time_changes_nothing(name, trained, tmp_path):
    run = f"later-{name}"
    shutil.copytree(trained / "without", tmp_path / "runs" / run)
    with contextlib.chdir(tmp_path):
        for _ in range(2):
            assert printed("runs", "log", run, "--to", name)["records"] == len(rows_of(Path("runs") / run))
            folder = Path("runs") / run
            assert logged(name, folder) == in_its_precision(name, numbers_in(folder))


class Harmed:
    """A tracker that fails at a certain call."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def _call(self, *given):
        self.calls += 1
        if self.calls == self.at:
            if self.error is None:
                threading.Event().wait(30)
            raise self.error

    log = end = _call


@pytest.mark.parametrize(
    ("at", "error"),
    [(1, OSError(28, "No space left on device")), (8, SystemExit(3)), (6, None)],
    ids=["disk full at once", "exit", "hangs"],
)
def test_a_tracker_that_fails_is_reported_once_and_changes_nothing(at, error, trained, request, monkeypatch):
    harmed, warnings, seen = Harmed(at, error), [], []
    monkeypatch.setattr("rankwise.commands.train.check_installed", lambda names: None)
    monkeypatch.setattr(tracking, "opened", lambda name, run: harmed)
    monkeypatch.setattr(tracking.Following.end, "__defaults__", (0.5,))
    run = request.node.callspec.id.replace(" ", "-")
    with contextlib.chdir(trained.parent):
        train(experiment(run, ["mlflow"]), callback=lambda event: (_warned(event, warnings), seen.append(event)))
    assert harmed.calls >= at, "it was not harmed"
    assert len(warnings) == 1 and "logging to mlflow ended: " in warnings[0] and "runs log" in warnings[0]
    assert sum(isinstance(event, StepRecord) for event in seen) == 12
    assert same_but_for_tracking(trained / run, trained / "without")


def test_names_that_mlflow_refuses_are_changed():
    # a setting's name may have that of a column in it, and MLflow ends with an error at some characters
    assert valid("data.columns.größe|?") == "data.columns.gr__e__" and len(valid("x" * 400)) == 250
    assert valid("evaluation/arc_easy/accuracy/low") == "evaluation/arc_easy/accuracy/low"


def test_a_missing_library_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("rankwise.system.extras.find_spec", lambda name: None)
    asked = Experiment.model_validate(
        {"model": "no/such-model", "data": "none.jsonl", "run": "r", "tracking": {"log_to": "mlflow,wandb"}}
    )
    with contextlib.chdir(tmp_path), pytest.raises(ConfigError) as refused:
        train(asked)
    told = str(refused.value)
    assert 'pip install "rankwise[mlflow]", or in a clone of rankwise pip install -e ".[mlflow]"' in told
    assert "rankwise[wandb]" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"log_to": "tensorbord"}, "log_to"),
        ({"log_to": "mlflow,mlflow"}, "named twice"),
        ({"log_to": "mlflow", "project": "../x"}, "project"),
    ],
)
def test_settings_without_sense_are_refused(given, problem):
    with pytest.raises(RankwiseError, match=problem):
        TrackingConfig(**given)
