"""Classifiers of texts and of images open in transformers' pipeline and in PEFT, and give our probabilities."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import planted
from classifiers import encoder_folder, labelled, scaled, write_rows
from rankwise.cli.main import app
from rankwise.commands import export as export_command
from rankwise.exporting import verification
from vision_models import save_folder

COMMON = (
    "--steps",
    "24",
    "--batch-size",
    "4",
    "--learning-rate",
    "0.01",
    "--rank",
    "2",
    "--set",
    "model.dtype=float32",
)


def rankwise(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encoder_folder(Path("tiny-bert"))
        write_rows("rows.jsonl", labelled(24))
        write_rows("scaled.jsonl", scaled(20))
        for run, rows in (("texts", "rows.jsonl"), ("numbers", "scaled.jsonl")):
            words = ("train", "--model", "tiny-bert", "--data", rows, "--run", run, "--held-out", "6", *COMMON)
            assert rankwise(*words).exit_code == 0
        save_folder("vit", Path("tiny-vit"))
        rng = np.random.default_rng(0)
        for at in range(20):
            name = Path("pictures") / ("dark", "light")[at % 2] / f"{at}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 128, (40, 40, 3), np.uint8) + 100 * (at % 2)).save(name)
        words = ("train", "--model", "tiny-vit", "--data", "pictures", "--run", "images", "--held-out", "6", *COMMON)
        result = rankwise(*words)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(verification, "ask", planted.ask_here)
    monkeypatch.setenv("RANKWISE_ENGINES", sys.executable)


@pytest.mark.parametrize("format", ["peft", "merged"])
@pytest.mark.parametrize("run", ["texts", "numbers", "images"])
def test_a_classifier_arrives(tmp_path, run, format):
    result = rankwise("export", run, "--to", tmp_path / "out", "--format", format, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    (verified,) = facts["engines"].values()
    assert verified["status"] == "right" and verified["questions"] == verified["answers_equal"] == 6
    assert verified["max_difference"] < (0.02 if run == "images" else 1e-5), verified
    assert facts["verified_with"] == "6 validation rows"


@pytest.mark.parametrize("format", ["peft", "merged"])
@pytest.mark.parametrize("run", ["texts", "images"])
def test_a_head_that_is_another_is_seen(tmp_path, monkeypatch, run, format):
    whole = export_command._written

    def turned(artifact, folder, *given, **more):
        told = whole(artifact, folder, *given, **more)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        head = {key: value.flip(0).contiguous() for key, value in tensors.items() if "classifier" in key}
        assert head
        save_file(tensors | head, file, metadata={"format": "pt"})
        return told

    monkeypatch.setattr(export_command, "_written", turned)
    result = rankwise("export", run, "--to", tmp_path / "out", "--format", format)
    assert result.exit_code == 1 and "outputs differ by up to" in result.stderr, result.output
    assert not (tmp_path / "out").exists()
