"""A training that is asked to end has the result of a run that was that long, and old requests end nothing."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from kit.command import rankwise
from kit.report_runs import made_run
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.errors import RunError
from rankwise.reporting.verdict import chosen_by_held_out
from rankwise.runs.directory import END_REQUEST, RunDirectory, ask_to_end, is_asked_to_end
from rankwise.runs.records import StepRecord
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import sha256_of


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home"))


def experiment(run, steps=12, **adapter):
    return Experiment(
        model={"name": "tiny-llama", "dtype": "float32"}, run=run, adapter=adapter or {"method": "lora", "rank": 2},
        data={"path": "rows.jsonl", "held_out": 4},
        training={"steps": steps, "batch_size": 2, "learning_rate": 1e-2, "backend": "eager", "schedule": "constant",
                  "warmup": 0, "checkpoint_steps": 2},
        validation={"steps": 50},
    )  # fmt: skip


def asks_at(step, run):
    def callback(event):
        if isinstance(event, StepRecord) and event.step == step:
            ask_to_end(RunDirectory.named(run))

    return callback


def test_a_training_that_is_asked_to_end_has_the_result_of_a_run_of_so_many_steps(home):
    ended = train(experiment("ended"), callback=asks_at(5, "ended"))
    whole = train(experiment("whole", steps=5))
    results = ended.manifest.results
    assert ended.manifest.status == "finished" and results is not None
    assert (results.steps, results.kept_step, results.ended_early) == (5, 5, "by request after step 5 of 12")
    assert results.validation_loss_after == whole.manifest.results.validation_loss_after, "the last step is validated"
    weights = "adapter_model.safetensors"
    assert sha256_of(ended.result / weights) == sha256_of(whole.result / weights)
    assert not is_asked_to_end(ended.run) and ended.run.steps_saved == []


def test_a_request_that_came_too_late_ends_no_later_attempt(home):
    run = RunDirectory.named("r")

    for again in ({}, {"resume": True}, {"restart": True}):
        if again:
            (run.folder / END_REQUEST).write_bytes(b"")
        with pytest.raises(KeyboardInterrupt):
            train(experiment("r"), callback=fails_at(9 if again else 5), **again)
    assert len(RunSnapshot.of(run).history.steps) == 9


def fails_at(step):
    def callback(event):
        if isinstance(event, StepRecord) and event.step == step:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(("step", "early"), [(2, True), (11, False)])
def test_adalora_has_the_ranks_that_it_had_when_it_was_asked_to_end(home, step, early):
    trained = train(experiment("r", method="adalora", budget=3), callback=asks_at(step, "r"))
    warnings = [one for one in trained.manifest.warnings if "more than its budget" in one]
    ranks = RunSnapshot.of(trained.run).history.ranks[-1]
    assert trained.manifest.results.steps == step and ranks.final
    assert sum(ranks.ranks.values()) > ranks.budget // 2 and len(warnings) == early
    if early:
        assert f"{sum(ranks.ranks.values()):,} ranks" in warnings[0]
    written = load_file(trained.result / "adapter_model.safetensors")
    stored = {name: len(value) for name, value in written.items() if "lora_A" in name}
    assert sum(stored.values()) == sum(ranks.ranks.values()), "the file has the ranks that were recorded"


def test_a_request_is_refused_where_it_would_have_no_effect():
    run = made_run("r")
    with pytest.raises(RunError, match="is not being trained"):
        ask_to_end(run)
    with run.locked():
        with pytest.raises(RunError, match=r"has already ended its steps \(finished\)"):
            ask_to_end(run)
        machine = run.manifest().machine | {"processes": 2}
        run.write_manifest(run.manifest().model_copy(update={"status": "running", "machine": machine}))
        with pytest.raises(RunError, match="several processes"):
            ask_to_end(run)
    assert not is_asked_to_end(run)


def test_held_out_rows_did_not_decide_a_run_that_was_asked_to_end():
    snapshot = RunSnapshot.of(made_run("r"))
    results = snapshot.manifest.results.model_copy(update={"ended_early": "by request after step 5 of 12"})
    assert chosen_by_held_out(snapshot.experiment.validation, results) == ""


def test_a_terminal_asks_as_a_page_does():
    run = made_run("r")
    refused = rankwise("runs", "end", "r", "--json")
    assert refused.exit_code == 2 and "is not being trained" in json.loads(refused.stdout)["error"]
    run.write_manifest(run.manifest().model_copy(update={"status": "running", "results": None}))
    with run.locked():
        asked = rankwise("runs", "end", "r", "--json")
    assert json.loads(asked.stdout) == {"asked_to_end": "r"} and is_asked_to_end(run)
