"""What changes results or memory without being asked for is shown with --quiet too, and a run keeps it for good."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import rankwise
from conftest import tiny_model
from rankwise.cli.main import app
from rankwise.commands.report import report
from rankwise.config.reading import with_settings
from rankwise.config.training import TrainingConfig
from rankwise.errors import ResourceError, TrainingError
from rankwise.forward.agreement import Agreement
from rankwise.methods.adapter import effect_of
from rankwise.methods.inject import inject
from rankwise.planning import forecast as forecasts
from rankwise.planning.devices import this_processor
from rankwise.runs.manifest import versions
from rankwise.runs.records import StatusMessage, StepRecord, WarningCollector, WarningMessage
from rankwise.training import backend, recording, settling
from rankwise.training import preflight as foresight
from rankwise.training import resume as resuming
from rankwise.training.trainer import Hook


class Stopped(Exception):
    pass


def stop_after(last):
    def callback(event):
        if isinstance(event, StepRecord) and event.step > last:
            raise Stopped

    return callback


@pytest.fixture
def small(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TrainingConfig(steps=4, batch_size=3, checkpoint_steps=1)
    return rankwise.Experiment(model=str(tiny_folder), data="rows.jsonl", training=spec, run="small")


@pytest.fixture
def with_unused_weights(tiny_folder, tmp_path):
    """A base that holds a weight for which the model has no place."""
    from safetensors.torch import load_file, save_file
    from torch import ones

    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors") | {"model.layers.0.self_attn.extra.weight": ones(2, 2)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_warnings_are_collected_once_and_in_order_and_everything_is_passed_on():
    heard, written = [], []
    warnings = WarningCollector(heard.append, changed=written.append)
    events = [WarningMessage("b"), StatusMessage("c"), WarningMessage("a"), WarningMessage("b")]
    for event in events:
        warnings(event)
    assert heard == events and warnings.texts == ("b", "a") and written == [("b",), ("b", "a")]
    warnings.add("z", "a", first=True)
    assert warnings.texts == ("z", "a", "b")


@pytest.mark.parametrize("words", [["--json"], ["--quiet", "--json"]], ids=" ".join)
def test_a_warning_is_on_stderr_in_the_manifest_and_in_the_report(small, with_unused_weights, words):
    given = ["train", "--model", str(with_unused_weights), "--data", "rows.jsonl", "--run", "r", "--steps", "2"]
    result = CliRunner().invoke(app, [*given, *words])
    assert result.exit_code == 0, result.output
    (text,) = [line for line in result.stderr.splitlines() if line.startswith("warning: 1 weights of ")]
    text = text.removeprefix("warning: ")
    assert ("Training" in result.stderr) == ("--quiet" not in words)
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    assert text in manifest["warnings"]
    data = json.loads(Path("runs/r/report.json").read_text())
    assert f"Warning: {text}" in data["remarks"] and text in data["environment"]["manifest"]["warnings"]
    assert "self_attn.extra.weight" in Path("runs/r/report.html").read_text()
    if "--json" in words:
        assert json.loads(result.stdout)["warnings"] == manifest["warnings"]


def test_warnings_are_kept_when_a_run_is_killed_fails_and_goes_on(small, monkeypatch):
    def announced(text):
        class Warns(Hook):
            def after_step(self, trainer):
                trainer.emit(WarningMessage(text))
                written = json.loads(Path("runs/small/manifest.json").read_text())
                assert text in written["warnings"] and written["status"] == "running"

        def with_hook(*given):
            made = real(*given)
            made.hooks = [*made.hooks, Warns()]
            return made

        return with_hook

    real = recording._trainer
    monkeypatch.setattr(recording, "_trainer", announced("first"))
    with pytest.raises(Stopped):
        rankwise.train(small, callback=stop_after(2))
    assert json.loads(Path("runs/small/manifest.json").read_text())["warnings"] == ["first"]
    monkeypatch.setattr(recording, "_trainer", announced("second"))
    found = rankwise.train(small, resume=True).manifest.warnings
    assert found == ("first", "second")
    assert [one for one in json.loads(report("small").data.read_text())["remarks"] if one.startswith("Warning")] == [
        "Warning: first", "Warning: second",
    ]  # fmt: skip


def test_a_resume_with_other_versions_warns_with_quiet_too(small, monkeypatch):
    with contextlib.suppress(Stopped), monkeypatch.context() as patch:
        patch.setattr("rankwise.runs.manifest.versions", lambda: {**versions(), "torch": "1.0"})
        rankwise.train(small, callback=stop_after(2))
    path = resuming.RunDirectory.named("small").folder / "manifest.json"
    words = ["--model", small.model.name, "--data", "rows.jsonl", "--run", "small", "--steps", "4"]
    words += ["--batch-size", "3", "--set", "training.checkpoint_steps=1", "--quiet", "--resume"]
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ") and "torch was 1.0 and is " in line
    assert line.removeprefix("warning: ") in json.loads(path.read_text())["warnings"]


@pytest.fixture
def apart(monkeypatch):
    """A fused backend that does not agree, as the model's own comparison would say it."""
    found = Agreement(False, "the two forms differ in bfloat16, logits by 9.00% and gradients by 20.00%")
    monkeypatch.setattr(backend, "agreement", lambda *given: found)
    return found


@pytest.fixture
def same_products(monkeypatch):
    """The process takes the same in both backends, since in a tiny model little else counts."""
    ours = forecasts.PROCESSOR
    monkeypatch.setattr(forecasts, "PROCESSOR", replace(ours, plain_products=ours.products))


def in_bfloat16(experiment):
    """On every machine: in float32 a tiny model needs no more memory with the eager backend."""
    return experiment.model_copy(update={"model": experiment.model.model_copy(update={"dtype": "bfloat16"})})


@pytest.mark.usefixtures("same_products")
def test_a_fall_back_to_the_eager_backend_is_warned_of_with_its_distance_and_forecast_anew(small, apart):
    small = in_bfloat16(small)
    usual = foresight.foresee(with_settings(small.explicit))
    trained = rankwise.train(small)
    manifest = trained.manifest
    assert manifest.backend == "eager" and manifest.forecast.peak_bytes > usual.plan.forecast.peak
    fallen, again = manifest.warnings
    assert fallen == f"using the eager backend, which takes more time and memory: {apart.why}"
    assert again.startswith("the eager backend is forecast to need ") and " of memory, instead of " in again
    plain = rankwise.train(small.model_copy(update={
        "run": "plain", "training": small.training.model_copy(update={"backend": "eager"}),
    })).manifest  # fmt: skip
    assert manifest.forecast.memory == plain.forecast.memory and plain.warnings == ()
    assert f"Warning: {fallen}" in json.loads(report("small").data.read_text())["remarks"]


@pytest.mark.usefixtures("same_products")
def test_what_cannot_fit_with_the_eager_backend_is_not_begun(small, apart, monkeypatch):
    small = in_bfloat16(small)
    plain = small.model_copy(update={"training": small.training.model_copy(update={"backend": "eager"})})
    # this model is so small that the copies of its head are more than what the kernels save
    monkeypatch.setattr(forecasts, "PROCESSOR", replace(forecasts.PROCESSOR, heads=0))
    fast, usual = (foresight.foresee(with_settings(one.explicit)) for one in (small, plain))
    room = (fast.least + usual.least) // 2
    assert fast.least < room < usual.least
    monkeypatch.setattr(foresight, "CERTAIN", 1.0)
    monkeypatch.setattr(foresight, "_device", lambda experiment: this_processor().with_memory(room))
    with pytest.raises(ResourceError, match="was not started"):
        rankwise.train(small)
    assert not Path("runs/small/manifest.json").exists()
    assert rankwise.train(small, force_memory=True).manifest.backend == "eager"


def test_a_resumed_run_keeps_its_backend(small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(backend, "agreement", lambda *given: Agreement(False, "apart"))
        with pytest.raises(Stopped):
            rankwise.train(small, callback=stop_after(2))
    manifest = rankwise.train(small, resume=True).manifest
    assert manifest.backend == "eager" and any("apart" in one for one in manifest.warnings)


@pytest.mark.parametrize(
    ("training", "alpha", "value"), [({"learning_rate": 1e-300}, 32.0, "1e-300"), ({}, 1e-30, "1e-30")]
)
def test_a_run_that_changed_nothing_is_an_error_that_names_the_value(small, training, alpha, value):
    spec = small.training.model_copy(update=training)
    adapter = rankwise.LoraConfig(alpha=alpha)
    with pytest.raises(TrainingError, match="nothing was learned") as caught:
        rankwise.train(small.model_copy(update={"training": spec, "adapter": adapter}))
    assert f"({value})" in str(caught.value) and caught.value.exit_code == 1
    assert json.loads(Path("runs/small/manifest.json").read_text())["status"] == "failed"
    assert not Path("runs/small/adapter").exists()


@pytest.mark.parametrize("spec", [rankwise.LoraConfig(rank=2, dora=True), rankwise.AdaLoraConfig(budget="2")])
def test_other_adapters_that_changed_nothing_are_found_too(small, spec):
    training = small.training.model_copy(update={"learning_rate": 1e-300, "steps": 30})
    with pytest.raises(TrainingError, match="nothing was learned"):
        rankwise.train(small.model_copy(update={"training": training, "adapter": spec}))


def test_a_change_below_the_rounding_of_the_base_is_warned_of(small):
    training = small.training.model_copy(update={"learning_rate": 1e-7})
    model = small.model.model_copy(update={"dtype": "bfloat16"})
    manifest = rankwise.train(small.model_copy(update={"training": training, "model": model})).manifest
    (warning,) = [one for one in manifest.warnings if one.startswith('the adapter changes "')]
    assert "training.learning_rate (1e-07)" in warning and "0.0039" in warning
    usual = rankwise.train(small.model_copy(update={"run": "usual", "model": model})).manifest
    assert not [one for one in usual.warnings if one.startswith('the adapter changes "')]


def test_documents_longer_than_the_window_are_computed_eagerly_with_a_warning(tiny_folder, monkeypatch):
    from rankwise.base.loading import load
    from rankwise.methods.lora import TrainableLoRA
    from rankwise.objectives.registry import objective_named

    model = load(str(tiny_folder))
    model.module.config.sliding_window = 20
    heard = []
    for longest in (20, 21):
        adapters = inject(model.module, rankwise.LoraConfig(rank=2))
        work = backend.Workload(
            model.module,
            TrainableLoRA(adapters),
            objective_named("causal-lm"),
            longest=longest,
            largest=64,
            callback=heard.append,
        )
        assert backend.choose_backend(work, "auto", 100).name == ("fused" if longest == 20 else "eager")
        adapters.remove()
    (warned,) = [event.text for event in heard if isinstance(event, WarningMessage)]
    assert "the longest row has 21 tokens, more than the model's sliding window" in warned


@pytest.mark.parametrize("kind", ["linear", "dora", "adalora"])
def test_the_share_of_a_change_is_that_of_the_matrices(kind):
    model = tiny_model("llama")
    spec = {"linear": rankwise.LoraConfig(rank=3), "dora": rankwise.LoraConfig(rank=3, dora=True),
            "adalora": rankwise.AdaLoraConfig(budget="3")}[kind]  # fmt: skip
    adapters = inject(model, spec)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    shares = {
        path: (adapter.delta().norm() / adapters.base_layer(path).weight.norm()).item()
        for path, adapter in adapters.adapters().items()
    }
    found = effect_of(adapters)
    assert found.path == max(shares, key=shares.__getitem__)
    assert found.share == pytest.approx(shares[found.path], rel=1e-4)


def test_a_run_that_the_forecast_finds_short_is_not_timed_for_the_compiler(small, monkeypatch):
    timed = []
    monkeypatch.setattr(backend, "COMPILED_AFTER", 1e-9)
    monkeypatch.setattr(backend, "_seconds_per_token", lambda work: timed.append(work) or 0.0)
    assert rankwise.train(small).manifest.backend == "fused" and not timed
    monkeypatch.setattr(settling, "foresee", lambda *_: None)
    rankwise.train(small.model_copy(update={"run": "unforeseen"}))
    assert timed
