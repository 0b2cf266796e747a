"""Rows with several labels each, from training to predictions, and what is refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kit.classifiers import encoder_folder, write_rows
from kit.command import done, rankwise
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.objectives.text_classification import TextEncoder
from rankwise.python.run import load_run
from rankwise.rows.text.example import Example, Message
from rankwise.runs.records import silent
from rankwise.runs.row_facts import TargetFacts

CLASSES = ["film", "good", "plot"]
TRAINING = ("--steps", "60", "--batch-size", "8", "--learning-rate", "0.01", "--set", "model.dtype=float32")


def several(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Each label is a word of the text, and some texts have none of them."""
    rows = []
    for number in range(start, start + count):
        labels = [name for at, name in enumerate(CLASSES) if number >> at & 1]
        words = {"film": "film", "good": "kind", "plot": "plot"}
        rows.append({"text": " ".join(["the", *(words[name] for name in labels), "is"]), "label": labels})
    return rows


def trained(run: str, data: str, *more: str) -> Any:
    return rankwise("train", "--model", "tiny-bert", "--data", data, "--run", run, *TRAINING, *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encoder_folder(Path("tiny-bert"))
        write_rows("rows.jsonl", several(24))
        write_rows("apart.jsonl", [row | {"text": f"a {row['text']}"} for row in several(9, 24)])
        result = trained("lora", "rows.jsonl", "--validation-data", "apart.jsonl")
        assert result.exit_code == 0, (result.output, result.exception)
        result = trained("learned", "rows.jsonl", "--method", "full", "--steps", "700", "--learning-rate", "0.002")
        assert result.exit_code == 0, (result.output, result.exception)
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def predicted(run: str, data: str, out: str) -> list[dict[str, Any]]:
    done("predict", run, "--data", data, "--out", out, "--overwrite", "--quiet")
    return [json.loads(line) for line in Path(out).read_text().splitlines()]


def test_loss_and_gradients_are_those_of_transformers(here):
    objective = objective_named(
        "sequence-classification", Facts(TargetFacts(classes=tuple(CLASSES), counts=(1,) * 3, form="several"))
    )
    model = load(ModelConfig(name="tiny-bert", dtype="float32"), silent, objective.kind)
    examples = [
        Example((Message("user", row["text"]), Message("assistant", "-")), f"rows:{at}", labels=tuple(row["label"]))
        for at, row in enumerate(several(8))
    ]
    made = TextEncoder(model.tokenizer, DataConfig(path="rows"), 64, objective.targets).encode(examples)
    (batch,) = objective.loss.batches([row for one in made for row in one.sequences], 10_000)
    module: Any = model.module.eval().requires_grad_(True)
    loss = objective.loss(module, batch) / batch.count
    loss.backward()
    ours = {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
    module.zero_grad()
    theirs = module(**batch.inputs, labels=batch.targets).loss
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert all((ours[name] - one.grad).abs().max() <= 1e-6 for name, one in module.named_parameters() if name in ours)


def test_the_labels_are_learned_and_have_a_probability_each(here):
    rows = several(24)
    found = predicted("learned", "rows.jsonl", "learned.jsonl")
    assert [row["prediction"] for row in found] == [row["label"] for row in rows]
    assert all((row[f"probability_{name}"] > 0.5) == (name in row["prediction"]) for row in found for name in CLASSES)
    (one,) = load_run("learned").predict([rows[7]["text"]])
    assert one["labels"] == CLASSES and set(one["probabilities"]) == set(CLASSES)


def test_peft_loads_what_was_written_and_gives_our_probabilities(here):
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(
        "tiny-bert", num_labels=3, problem_type="multi_label_classification"
    )
    model, tokenizer = PeftModel.from_pretrained(base, "runs/lora/adapter"), AutoTokenizer.from_pretrained("tiny-bert")
    for row in predicted("lora", "apart.jsonl", "peft.jsonl"):
        with torch.no_grad():
            theirs = model.eval()(**tokenizer(row["text"], return_tensors="pt")).logits[0].double().sigmoid().numpy()
        assert np.abs(theirs - [row[f"probability_{name}"] for name in CLASSES]).max() <= 1e-5


def test_evaluation_counts_what_predict_says(here):
    found = predicted("lora", "apart.jsonl", "counted.jsonl")
    pairs = [(set(row["prediction"]), set(row["label"])) for row in found]
    result = done("evaluate", "lora", "--json", "--quiet")
    metrics = {name: one["value"] for name, one in json.loads(result.stdout)["metrics"].items()}
    right, said, actual = (sum(map(len, part)) for part in zip(*((a & b, a, b) for a, b in pairs), strict=True))
    assert metrics["micro_f1"] == pytest.approx(2 * right / (said + actual))
    assert metrics["exact_match"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    each = [
        2 * sum(name in a & b for a, b in pairs) / sum((name in a) + (name in b) for a, b in pairs) for name in CLASSES
    ]
    assert metrics["f1"] == pytest.approx(sum(each) / 3)
    details = json.loads(result.stdout)["sets"]
    assert [one["name"] for one in details["types"]] == CLASSES
    assert details["wrong_rows"] == sum(a != b for a, b in pairs)
    assert "nats per row and class" in Path("runs/lora/report.html").read_text()


def test_a_merged_export_is_such_a_classifier(here):
    done("export", "lora", "--to", "merged", "--format", "merged", "--dtype", "float32")
    config = json.loads(Path("merged/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


ROW = {"text": "the film", "label": ["film"]}
REFUSED: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], str]] = {
    "one label": ([ROW, {"text": "a", "label": []}], (), "only the label 'film' is in any row"),
    "no label": ([{"text": "a", "label": []}] * 2, (), "no label is in any row"),
    "the same": ([{"text": "a", "label": ["b", "c"]}] * 2, (), "every row has the same labels"),
    "mixed": ([ROW, {"text": "a", "label": "plot"}], (), "rows.jsonl:2: the label is one name, and other rows have"),
    "twice": ([{"text": "a", "label": ["b", "b"]}], (), "the label names 'b' twice"),
    "not a name": ([{"text": "a", "label": ["b", {}]}], (), "rows.jsonl:1: the label is {}"),
    "weights": (several(8), ("--set", "classification.class_weights=balanced"), "class_weights needs rows of one"),
    "sampling": (several(8), ("--set", "classification.sampling=balanced"), "sampling needs rows of one class each"),
    "metric": (several(8), ("--set", "validation.by=accuracy", "--held-out", "2"), "have several labels, whose"),
    "classes": (several(8), ("--set", "classification.targets=classes"), "a list, where one name is expected"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_learned_is_refused_in_a_sentence(tmp_path, here, kind):
    rows, words, said = REFUSED[kind]
    result = trained("refused", write_rows(tmp_path / "rows.jsonl", rows), *words)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output


def test_a_language_model_does_not_learn_lists_as_answers(here, tiny_folder):
    result = rankwise("train", "--model", str(tiny_folder), "--data", "rows.jsonl", "--run", "answers", "--steps", "1")
    assert result.exit_code == 2 and "Add --objective sequence-classification" in result.output, result.output


def test_rows_are_checked_and_previewed_for_the_objective_that_a_refusal_names(here, tiny_folder):
    words = ("data", "check", "rows.jsonl", "--model", str(tiny_folder))
    refused = rankwise(*words)
    assert refused.exit_code == 2 and "Add --objective sequence-classification" in refused.output, refused.output
    checked = rankwise(*words, "--objective", "sequence-classification")
    assert checked.exit_code == 0 and "3 classes, any number of them in a row" in checked.output, checked.output
    shown = rankwise("data", "preview", *words[2:], "--objective", "sequence-classification")
    assert shown.exit_code == 0 and " -> film" in shown.output, shown.output
    unknown = rankwise(*words, "--objective", "classification")
    assert unknown.exit_code == 2 and "there is no such objective" in unknown.output, unknown.output
    misfit = rankwise(*words, "--objective", "sequence-to-sequence")
    assert misfit.exit_code == 2 and "is not an encoder with a decoder" in misfit.output, misfit.output
