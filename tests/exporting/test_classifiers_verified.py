"""Classifiers of texts, words and images open in transformers and in PEFT, and give our probabilities."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from kit import planted
from kit.classifiers import encoder_folder, labelled, scaled, write_rows
from kit.command import printed, rankwise
from kit.tagged import spanned, tagger_folder
from kit.vision_models import save_folder
from rankwise.commands import export as export_command
from rankwise.exporting import verification
from rankwise.exporting.agreement import ClassReference, compare_classes
from rankwise.exporting.engine_process import EngineReplies
from rankwise.objectives.classifier import TOLERANCES

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


def several(count):
    """Texts with the labels of their words."""
    kinds = {"film": "film", "good": "kind", "plot": "plot"}
    rows = []
    for number in range(count):
        labels = [name for at, name in enumerate(kinds) if number >> at & 1]
        rows.append({"text": " ".join(["the", *(kinds[name] for name in labels), "is"]), "label": labels})
    return rows


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
        words = ("train", "--model", "tiny-bert", "--data", "rows.jsonl", "--run", "pooled", "--held-out", "6", *COMMON)
        assert rankwise(*words, "--set", "classification.pooling=mean").exit_code == 0
        tagger_folder(Path("tiny-tagger"))
        write_rows("tagged.jsonl", spanned(24))
        write_rows("several.jsonl", several(24))
        for run, model in (("tagged", "tiny-tagger"), ("several", "tiny-bert")):
            words = ("train", "--model", model, "--data", f"{run}.jsonl", "--run", run, "--held-out", "6", *COMMON)
            result = rankwise(*words)
            assert result.exit_code == 0, result.output
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


@pytest.mark.parametrize(
    ("run", "format"),
    [
        ("texts", "peft"), ("texts", "merged"), ("pooled", "merged"), ("numbers", "peft"), ("several", "merged"),
        ("tagged", "peft"), ("tagged", "merged"), ("images", "peft"), ("images", "merged"),
    ],
)  # fmt: skip
def test_a_classifier_arrives(tmp_path, run, format):
    facts = printed("export", run, "--to", tmp_path / "out", "--format", format)
    (verified,) = facts["engines"].values()
    assert verified["status"] == "right" and verified["questions"] == verified["answers_equal"] >= 6
    assert verified["questions"] == 6 or run == "tagged", "each word is asked for"
    assert verified["max_difference"] < (0.02 if run == "images" else 1e-5), verified
    assert facts["verified_with"] == "6 validation rows"


@pytest.mark.parametrize(
    ("run", "format"), [("texts", "peft"), ("several", "merged"), ("tagged", "peft"), ("images", "merged")]
)
def test_a_head_that_is_another_is_seen(tmp_path, monkeypatch, run, format):
    whole = export_command._write_export

    def turned(order):
        told, folder = whole(order), order.folder
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        head = {key: value.flip(0).contiguous() for key, value in tensors.items() if "classifier" in key}
        assert head
        save_file(tensors | head, file, metadata={"format": "pt"})
        return told

    monkeypatch.setattr(export_command, "_write_export", turned)
    result = rankwise("export", run, "--to", tmp_path / "out", "--format", format)
    assert result.exit_code == 1 and "outputs differ by up to" in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_names_of_tags_in_another_order_are_seen(tmp_path, monkeypatch):
    whole = export_command._write_export

    def renamed(order):
        told, folder = whole(order), order.folder
        config = json.loads((folder / "config.json").read_text())
        names = config["id2label"]
        names["1"], names["3"] = names["3"], names["1"]
        config["label2id"] = {name: int(number) for number, name in names.items()}
        (folder / "config.json").write_text(json.dumps(config))
        return told

    monkeypatch.setattr(export_command, "_write_export", renamed)
    result = rankwise("export", "tagged", "--to", tmp_path / "out", "--format", "merged")
    assert result.exit_code == 1 and "outputs differ by up to" in result.stderr, result.output


def verdict_on(theirs, ours, form):
    questions = tuple({"text": "a"} for _ in ours)
    reference = ClassReference(
        "texts", questions, tuple(map(tuple, ours)), ("a", "b"), "base", "", TOLERANCES, form=form
    )  # fmt: skip
    replies = EngineReplies.model_validate(
        {"engine": "one", "version": "1", "replies": [{"outputs": one} for one in theirs]}
    )
    return compare_classes(reference, replies, "bfloat16")


def test_each_label_and_each_word_is_compared_and_not_the_likeliest_alone():
    """Outputs that differ by less than is allowed, on another side of a half, where ours were far enough from it."""
    same = verdict_on([[0.9, 0.2]], [[0.9, 0.2]], "several")
    assert same.status == "right" and same.figures.answers_equal == 1
    near = verdict_on([[0.9, 0.51]], [[0.9, 0.49]], "several")
    assert near.status == "right" and (near.figures.answers_equal, near.figures.answers_near) == (0, 1)
    words = verdict_on([[0.9, 0.1, 0.3, 0.7]], [[0.9, 0.1, 0.3, 0.7]], "tags")
    assert words.status == "right" and words.figures.questions == words.figures.answers_equal == 2
    other = verdict_on([[0.9, 0.1, 0.7, 0.3]], [[0.9, 0.1, 0.3, 0.7]], "tags")
    assert other.status == "wrong" and other.figures.answers_equal == 1
    missing = verdict_on([[0.9, 0.1]], [[0.9, 0.1, 0.3, 0.7]], "tags")
    assert missing.status == "wrong" and "it gives 2 outputs, and there are 4" in missing.why
