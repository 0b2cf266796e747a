"""What changes results or memory without being asked for is shown with --quiet too, and a run keeps it for good."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rankwise
from rankwise.cli.main import app
from rankwise.run.records import Said, StepRecord, Warned, Warnings
from rankwise.spec.training import TrainingSpec
from rankwise.verbs import resuming
from rankwise.verbs import train as training
from rankwise.verbs.report import report


class Stopped(Exception):
    pass


def stop_after(last):
    def announce(event):
        if isinstance(event, StepRecord) and event.step > last:
            raise Stopped

    return announce


@pytest.fixture
def small(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TrainingSpec(steps=4, batch_size=3, checkpoint_steps=1)
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
    warnings = Warnings(heard.append, changed=written.append)
    events = [Warned("b"), Said("c"), Warned("a"), Warned("b")]
    for event in events:
        warnings(event)
    assert heard == events and warnings.texts == ("b", "a") and written == [("b",), ("b", "a")]
    warnings.add("z", "a", first=True)
    assert warnings.texts == ("z", "a", "b")


@pytest.mark.parametrize("words", [["--quiet"], ["--json"], ["--quiet", "--json"]], ids=" ".join)
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
        class Told(training.Session):
            def work(self, state, past):
                self.announce(Warned(text))
                written = json.loads(self.run.folder.joinpath("manifest.json").read_text())
                assert text in written["warnings"] and written["status"] == "running"
                return super().work(state, past)

        return Told

    monkeypatch.setattr(training, "Session", announced("first"))
    with pytest.raises(Stopped):
        rankwise.train(small, announce=stop_after(2))
    assert json.loads(Path("runs/small/manifest.json").read_text())["warnings"] == ["first"]
    monkeypatch.setattr(training, "Session", announced("second"))
    found = rankwise.train(small, resume=True).manifest.warnings
    assert found == ("first", "second")
    assert [one for one in json.loads(report("small").data.read_text())["remarks"] if one.startswith("Warning")] == [
        "Warning: first", "Warning: second",
    ]  # fmt: skip


def test_a_resume_with_other_versions_warns_with_quiet_too(small):
    with contextlib.suppress(Stopped):
        rankwise.train(small, announce=stop_after(2))
    path = resuming.RunDirectory.named("small").folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    words = ["--model", small.model.name, "--data", "rows.jsonl", "--run", "small", "--steps", "4"]
    words += ["--batch-size", "3", "--set", "training.checkpoint_steps=1", "--quiet", "--resume"]
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ") and "torch was 1.0 and is " in line
    assert line.removeprefix("warning: ") in json.loads(path.read_text())["warnings"]
