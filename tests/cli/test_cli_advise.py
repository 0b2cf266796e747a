"""`rankwise advise`: what it says, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

import rankwise
from kit import command
from kit.classifiers import encoder_folder, labelled, write_rows
from rankwise.errors import ConfigError
from rankwise.runs.advice import Advice

ANSWERS = {"brown": "fox", "lazy": "dog", "glass": "radio", "capital": "Paris"}
FAST = ("--model", "tiny-llama", "--rank", "8", "--learning-rate", "0.02", "--batch-size", "16", "--held-out", "60",
        "--set", "model.dtype=float32", "--backend", "eager")  # fmt: skip


def run(*words):
    return command.rankwise("advise", *words)


def questions(count, *, shuffled):
    draw = random.Random(0)
    rows = [{"prompt": word, "completion": ANSWERS[word]} for word in draw.choices(list(ANSWERS), k=count)]
    answers = [row["completion"] for row in rows]
    if shuffled:
        draw.shuffle(answers)
    return [row | {"completion": answer} for row, answer in zip(rows, answers, strict=True)]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("advise")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(tiny_folder, "tiny-llama")
        encoder_folder(Path("tiny-bert"))
        write_rows("related.jsonl", questions(260, shuffled=False))
        write_rows("shuffled.jsonl", questions(260, shuffled=True))
        yield folder


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("rows", "verdict", "reason"), [("related", "train", "better"), ("shuffled", "neither", "unrelated")]
)
def test_rows_that_teach_something_and_the_same_rows_shuffled(home, rows, verdict, reason):
    before = contents(home)
    result = run("--data", f"{rows}.jsonl", "--steps", "400", *FAST, "--json")
    assert result.exit_code == 0, result.output
    advice = json.loads(result.stdout)
    assert (advice["verdict"], advice["reason"]) == (verdict, reason), advice["text"]
    assert advice["adapter"]["loss"]["value"] < advice["base"]["loss"]["value"], "in both it learns which answers occur"
    assert advice["cost"]["short_steps"] == 40
    assert advice["measured_rows"] == 60
    assert contents(home) == before, "nothing is written"


def test_the_paragraph_the_table_and_the_folder(home):
    result = run("--data", "related.jsonl", "--steps", "20", *FAST, "--out", "advice")
    assert result.exit_code == 0, result.output
    written = Path("advice/advice.txt").read_text()
    assert written in result.stdout
    advice = Advice.model_validate_json(Path("advice/advice.json").read_text())
    assert advice.text in written
    assert advice.examples == 5
    for words in ("base with 5 examples", "adapter, 20 steps", "adapter, 5 steps on 50 rows", "of a full run"):
        assert words in written
    again = run("--data", "related.jsonl", *FAST, "--out", "advice")
    assert again.exit_code == 2
    assert "already exists" in again.output


@pytest.mark.parametrize(("shuffled", "verdict"), [(False, "train"), (True, "neither")])
def test_labels_of_an_encoder(home, shuffled, verdict):
    rows, draw = labelled(300), random.Random(1)
    labels = [row["label"] for row in rows]
    if shuffled:
        draw.shuffle(labels)
    write_rows("labels.jsonl", [row | {"label": label} for row, label in zip(rows, labels, strict=True)])
    mean = ("--set", "classification.pooling=mean")  # the first token of a random encoder says little
    result = run("--model", "tiny-bert", "--data", "labels.jsonl", "--steps", "100", *mean, "--json")
    assert result.exit_code == 0, result.output
    advice = json.loads(result.stdout)
    assert advice["verdict"] == verdict, advice["text"]
    assert advice["classifies"]
    assert (advice["untrained"] is None) == shuffled, "a head is fitted where the frozen model says anything"


def test_what_advise_does_not_do_is_refused_by_name(home):
    for words, problem in (
        (("--set", "adapter.method=full"), "adapter.method is full"),
        (("--set", "adapter.method=adalora"), "adapter.method is adalora"),
        (("--set", "adapter.start_from=there"), "start_from"),
        (("--examples", "-1"), "examples"),
        (("--set", "training.anchor.weight=1"), "training.anchor is given"),
        (("--set", "training.replay.share=0.2"), "training.replay is given"),
        (("--set", "training.learning_rate=tune"), "--tune"),
        (("--objective", "image-classification"), "image-classification"),
    ):
        result = run("--model", "tiny-llama", "--data", "related.jsonl", *words, "--json")
        assert result.exit_code == 2, words
        assert problem in result.output


def test_two_rows_are_too_few(home):
    write_rows("few.jsonl", questions(3, shuffled=False))
    result = run("--data", "few.jsonl", "--model", "tiny-llama")
    assert result.exit_code == 2
    assert "too few" in result.output


def test_a_loaded_model_is_the_same_bit_for_bit_afterwards(home):
    model = rankwise.load(rankwise.ModelConfig(name="tiny-llama", dtype="float32"))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    advice = rankwise.advise(model=model, data="related.jsonl", held_out=20, steps=20, examples=0, progress=False)
    assert advice.untrained is None and advice.examples == 0
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    shutil.copytree("tiny-llama", "copy")
    with pytest.raises(ConfigError, match="names copy"):
        rankwise.advise(rankwise.Experiment(model="copy", data="related.jsonl", run="x"), model=model)
