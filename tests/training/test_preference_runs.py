"""Runs over preference pairs: what they compare with, that they resume bit for bit, and what they say of themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kit.interrupted import interrupt
from kit.small_runs import as_first_format
from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import Trained, train
from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError, Interrupted, RunError
from rankwise.objectives.objective import Objective
from rankwise.objectives.preference import log_probabilities
from rankwise.objectives.registry import objective_for
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import Event, ScoreRecord, StepRecord, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.training.pairs import PairReference

STEPS = 12


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for _ in range(30):
        a, b = random.integers(1, 60, 2).tolist()
        rows.append({"prompt": f"What is {a} plus {b}?", "chosen": f"It is {a + b}.", "rejected": f"{a} or {b}, no?"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(tiny: Path, run: str, **changes: Any) -> Experiment:
    given: dict[str, Any] = {
        "model": {"name": str(tiny), "dtype": "float32"}, "run": run, "objective": "preference",
        "data": {"path": "pairs.jsonl", "held_out": 8}, "adapter": {"rank": 2},
        "training": {"steps": STEPS, "batch_size": 4, "learning_rate": 5e-3, "checkpoint_steps": 5,
                     "backend": "eager"},
    }  # fmt: skip
    for part, values in changes.items():
        merged = isinstance(values, dict) and "method" not in values
        given[part] = given.get(part, {}) | values if merged else values
    return Experiment(**given)


def losses(run: str) -> list[tuple[int, float, float, float]]:
    rows = read_metrics_log(Path("runs") / run / "metrics.jsonl")
    return [
        (row["step"], row["loss"], row["margin"], row["preference_accuracy"]) for row in rows if row["kind"] == "step"
    ]


def learned(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path("runs") / run / "adapter" / "adapter_model.safetensors")


METHODS: dict[str, dict[str, Any]] = {
    "orpo": {"preference": {"loss": "orpo"}}, "fused": {"training": {"backend": "fused"}},
    "adalora": {"adapter": {"method": "adalora", "budget": 2}},
}  # fmt: skip


@pytest.mark.parametrize("how", METHODS)
def test_a_run_learns_the_preference_and_goes_on_bit_for_bit_where_it_stopped(how, home, tiny_folder):
    changes = METHODS[how]
    whole = train(settings(tiny_folder, "whole", **changes))
    results = whole.manifest.results
    assert results is not None and results.preference is not None
    assert results.preference.margin_after > results.preference.margin_before
    assert results.validation_loss_after < results.validation_loss_before

    interrupt(settings(tiny_folder, "stopped", **changes), 8)
    train(settings(tiny_folder, "stopped", **changes), resume=True)
    assert losses("stopped") == losses("whole")
    first, second = learned("whole"), learned("stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not Path("runs/stopped/reference.json").exists(), "a finished run needs it no more"


def test_a_run_is_resumed_with_the_reference_of_its_checkpoint_and_not_without_one(home, tiny_folder):
    interrupt(settings(tiny_folder, "a"), 8)
    Path("runs/a/reference.json").write_text('{"values": [], "sha256": ""}')
    shutil.copytree("runs/a", "before")
    warnings = train(settings(tiny_folder, "a"), resume=True).manifest.warnings
    assert any("reference.json was damaged and is written anew from step-5" in text for text in warnings)
    shutil.rmtree("runs/a")
    shutil.move("before", "runs/a")
    as_first_format(Path("runs/a/checkpoints/step-5"))
    with pytest.raises(RunError, match=r"reference\.json is missing or damaged.*--restart"):
        train(settings(tiny_folder, "a"), resume=True)


@pytest.mark.parametrize("text", ["", "[]", '{"values": [[1, 2]]}', '{"values": [[1, 2]], "sha256": ""}'])
def test_a_damaged_reference_is_not_read(text, tmp_path):
    (tmp_path / "reference.json").write_text(text)
    assert PairReference.read(tmp_path / "reference.json", 1) is None


def test_the_reference_is_the_base_with_the_adapter_off(home, tiny_folder):
    kept: list[PairReference] = []

    def look(event: Event) -> None:
        if isinstance(event, StepRecord) and event.step == 5 and not kept:
            kept.append(PairReference(np.array(json.loads(Path("runs/a/reference.json").read_text())["values"])))

    trained = train(settings(tiny_folder, "a"), callback=look)
    objective = objective_for(RunSnapshot.read("a").data_report)
    assert isinstance(objective, Objective)
    rows = _rows(trained, objective)
    with torch.no_grad(), trained.trainable.base():
        (batch,) = objective.loss.batches(rows, 1_000_000)
        sums = batch.pairs.sums(log_probabilities(objective.loss.predict(trained.model.module, batch), batch))
    expected = np.empty((len(rows), 2))
    expected[list(batch.pairs.positions)] = sums.numpy()
    assert kept[0].values == pytest.approx(expected, abs=1e-4)


def test_a_training_that_begins_with_an_adapter_is_compared_with_that_adapter(home, tiny_folder):
    first = train(settings(tiny_folder, "a")).manifest.results
    assert first is not None and first.preference is not None and first.preference.margin_after > 0.01
    again = settings(tiny_folder, "b", adapter={"method": "lora", "start_from": "a"})

    def stop(event: Event) -> None:
        if isinstance(event, StepRecord) and event.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(again, callback=stop)
    second = train(again, resume=True).manifest.results
    assert second is not None and second.preference is not None
    assert second.preference.margin_before == pytest.approx(0, abs=1e-5)
    assert second.preference.margin_after > 0.01


def _rows(trained: Trained, objective: Objective) -> list[Any]:
    from rankwise.rows.preparing import prepare

    prepared = prepare(RunSnapshot.read("a").experiment.data, objective.rows.encoding(trained.model), silent)
    return list(prepared.sequences)


def test_full_fine_tuning_learns_pairs_too_and_starts_undecided(home, tiny_folder):
    experiment = settings(tiny_folder, "full", training={"learning_rate": 1e-3}, adapter={"method": "full"})
    results = train(experiment).manifest.results
    assert results is not None and results.preference is not None
    assert results.preference.margin_before == pytest.approx(0, abs=1e-6)
    assert results.validation_loss_before == pytest.approx(np.log(2), abs=1e-6)
    assert results.preference.margin_after > 0.01 and results.preference.kl_from_base is None
    found = evaluate("full", forgetting=False)
    assert found.tuned.metrics["margin"].value == pytest.approx(results.preference.margin_after, rel=1e-3)
    assert found.tuned.metrics["kl_from_base"].value > 0


def test_an_evaluation_repeats_what_the_last_validation_measured(home, tiny_folder):
    results = train(settings(tiny_folder, "a")).manifest.results
    assert results is not None and results.preference is not None
    found = evaluate("a", forgetting=False)
    metrics = found.tuned.metrics
    assert metrics["margin"].value == pytest.approx(results.preference.margin_after, rel=1e-4)
    assert metrics["preference_accuracy"].value == results.preference.accuracy_after.value
    assert metrics["preference_loss"].value == pytest.approx(results.validation_loss_after, rel=1e-4)
    assert metrics["kl_from_base"].value == pytest.approx(results.preference.kl_from_base, rel=1e-3)
    assert found.base is not None and found.base.metrics["preference_accuracy"].value == 0.5
    assert found.base.metrics["kl_from_base"].value == 0
    alone = evaluate("a", base=False, forgetting=False)
    assert set(alone.tuned.metrics) == {"likelihood_accuracy"}
    page = Path("runs/a/report.html").read_text()
    assert "preference accuracy" in page and "kl_from_base" in page


def test_other_pairs_can_be_measured_and_training_pairs_not(home, tiny_folder):
    train(settings(tiny_folder, "a"))
    row = {"prompt": "What is 90 plus 1?", "chosen": "It is 91.", "rejected": "90 or 1, no?"}
    Path("others.jsonl").write_text(json.dumps(row) + "\n")
    assert evaluate("a", data="others.jsonl", forgetting=False).n == 1
    with pytest.raises(Exception, match="belongs to the data of the run"):
        evaluate("a", data="pairs.jsonl", forgetting=False)


def test_the_best_of_several_validations_by_accuracy_is_chosen(home, tiny_folder):
    seen: list[ScoreRecord] = []
    trained = train(
        settings(tiny_folder, "a", validation={"steps": 3, "keep": "best", "by": "margin"}),
        callback=lambda event: seen.append(event) if isinstance(event, ScoreRecord) else None,
    )
    margins = {one.step: one.value for one in seen if one.metric == "margin" and one.step}
    assert trained.manifest.results is not None
    assert trained.manifest.results.kept_step == max(margins, key=lambda step: (margins[step], -step))


IDLE: dict[str, tuple[dict[str, Any], str]] = {
    "an anchor": ({"training": {"anchor": {}}}, "training.anchor"),
    "replay": ({"training": {"replay": {}}}, "training.replay"),
    "trials": ({"training": {"learning_rate": "tune"}}, "training.learning_rate tune"),
    "prompts with dpo": ({"data": {"learned": "everything"}}, "data.learned everything"),
    "a format": ({"data": {"format": "alpaca"}}, "data.format alpaca"),
    "columns": ({"data": {"prompt": "{a}", "completion": "{b}"}}, "data.prompt"),
    "a text metric": ({"validation": {"by": "rouge_l", "answers": 4}}, "validation.by rouge_l"),
}


@pytest.mark.parametrize("case", IDLE)
def test_settings_without_effect_are_refused_by_name(case, home, tiny_folder):
    changes, name = IDLE[case]
    with pytest.raises(ConfigError, match=rf"the setting {name} has no effect with the objective"):
        train(settings(tiny_folder, "a", **changes))
    assert not Path("runs/a").exists()


def test_unknown_settings_and_impossible_values_are_refused(home, tiny_folder):
    for wrong in ({"loss": "ppo"}, {"beta": 0}, {"beta": -1}, {"gamma": 1}):
        with pytest.raises(ConfigError, match="preference"):
            settings(tiny_folder, "a", preference=wrong)
