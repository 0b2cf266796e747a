"""`--objective token-classification` from training to predicted spans, and what is refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from kit.classifiers import write_rows
from kit.command import done, rankwise
from kit.tagged import spanned, tagger_folder, tokenised
from rankwise.errors import DataError
from rankwise.python.run import load_run
from rankwise.rows.text.example import spans_of
from rankwise.runs.snapshot import RunSnapshot

TRAINING = ("--steps", "24", "--batch-size", "4", "--learning-rate", "0.01", "--set", "model.dtype=float32")
METHODS: dict[str, tuple[str, ...]] = {
    "lora": ("--rank", "2"),
    "adalora": ("--method", "adalora", "--budget", "2"),
    "dora": ("--rank", "2", "--set", "adapter.dora=true"),
    "head": ("--method", "head"),
    "full": ("--method", "full"),
}
CLASSES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def trained(run: str, data: str, *more: str) -> Any:
    result = done("train", "--model", "tiny-tagger", "--data", data, "--run", run, *TRAINING, *more)
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the encoder, rows, and one run of each method."""
    folder = tmp_path_factory.mktemp("tagging")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tagger_folder(Path("tiny-tagger"))
        write_rows("rows.jsonl", spanned(24))
        write_rows("apart.jsonl", spanned(9, 24))
        write_rows("texts.jsonl", [{"text": row["text"]} for row in spanned(9, 24)])
        for name, words in METHODS.items():
            trained(name, "rows.jsonl", "--validation-data", "apart.jsonl", *words)
        write_rows("tokens.jsonl", tokenised(24))
        trained("learned", "tokens.jsonl", "--steps", "120", "--batch-size", "8", "--rank", "8")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def predicted(run: str, data: str, out: str) -> list[dict[str, Any]]:
    done("predict", run, "--data", data, "--out", out, "--overwrite", "--quiet")
    return [json.loads(line) for line in Path(out).read_text().splitlines()]


def by_first_tokens(model: Any, text: str) -> list[tuple[int, int, str, float]]:
    """Spans by transformers' own model and tokenizer, in characters, from the first token of each of its words."""
    tokenizer = AutoTokenizer.from_pretrained("tiny-tagger")
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        shares = model.eval()(**encoded).logits[0].double().softmax(-1)
    words = encoded.word_ids()
    first = [at for at, word in enumerate(words) if word is not None and word != words[at - 1]]
    ranges = [encoded.word_to_chars(words[at]) for at in first]
    tags, sure = [CLASSES[int(shares[at].argmax())] for at in first], [shares[at].max().item() for at in first]
    return [
        (ranges[one.first].start, ranges[one.stop - 1].end, one.label, float(np.mean(sure[one.first : one.stop])))
        for one in spans_of(tags)
    ]


@pytest.mark.parametrize("run", ["lora", "adalora", "dora", "head"])
def test_peft_loads_what_was_written_and_gives_our_spans(here, run):
    torch.manual_seed(1)  # another head than the one that was trained begins here
    base = AutoModelForTokenClassification.from_pretrained("tiny-tagger", num_labels=5)
    model = PeftModel.from_pretrained(base, f"runs/{run}/adapter")
    for row in predicted(run, "texts.jsonl", "peft.jsonl"):
        theirs = by_first_tokens(model, row["text"])
        ours = [(one["start"], one["end"], one["label"]) for one in row["prediction"]]
        assert ours == [one[:3] for one in theirs]
        assert [one["probability"] for one in row["prediction"]] == pytest.approx([one[3] for one in theirs], abs=1e-5)
        assert all(one["text"] == row["text"][one["start"] : one["end"]] for one in row["prediction"])


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_merged_model_is_a_token_classifier_for_transformers(here, run, tmp_path):
    folder = Path("runs/full/model")
    if run == "lora":
        folder = tmp_path / "merged"
        result = rankwise("export", run, "--to", str(folder), "--format", "merged", "--dtype", "float32")
        assert result.exit_code == 0 and "AutoModelForTokenClassification" in result.output, result.output
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert [model.config.id2label[at] for at in range(5)] == CLASSES
    text = "Anna works in New Delhi."
    write_rows("one.jsonl", [{"text": text}])
    (row,) = predicted(run, "one.jsonl", "one-out.jsonl")
    assert [(one["start"], one["end"], one["label"]) for one in row["prediction"]] == [
        one[:3] for one in by_first_tokens(model, text)
    ]
    pipe = pipeline("token-classification", model=model, tokenizer=AutoTokenizer.from_pretrained("tiny-tagger"))
    assert {one["entity"] for one in pipe(text)} <= set(CLASSES)


def test_the_adapter_holds_the_head_as_peft_names_it(here):
    config = json.loads(Path("runs/lora/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "TOKEN_CLS" and config["modules_to_save"] == ["classifier"]
    tensors = load_file("runs/lora/adapter/adapter_model.safetensors")
    assert tensors["base_model.model.classifier.weight"].shape == (5, 32)
    card = Path("runs/lora/adapter/README.md").read_text()
    assert "pipeline_tag: token-classification" in card and "AutoModelForTokenClassification" in card


def test_rows_with_words_are_learned_by_heart(here):
    rows = tokenised(24)
    write_rows("words.jsonl", [{"tokens": row["tokens"]} for row in rows])
    found = predicted("learned", "words.jsonl", "learned.jsonl")
    assert [row["prediction_tags"] for row in found] == [row["tags"] for row in rows]
    tagged = load_run("learned").predict([rows[0]["tokens"], "Chen works in Quito."])
    assert tagged[0]["tags"] == rows[0]["tags"]
    assert [(one["text"], one["label"]) for one in tagged[1]["spans"]] == [("Chen", "PER"), ("Quito", "LOC")]


def test_evaluation_counts_what_predict_says(here):
    rows = spanned(9, 24)
    found = predicted("lora", "texts.jsonl", "a.jsonl")
    pairs = [
        ({(one["start"], one["end"], one["label"]) for one in row["prediction"]},
         {(one["start"], one["end"], one["label"]) for one in true["spans"]})
        for row, true in zip(found, rows, strict=True)
    ]  # fmt: skip
    right, said, actual = (sum(len(one) for one in part) for part in (
        [one & two for one, two in pairs], [one for one, _ in pairs], [two for _, two in pairs]
    ))  # fmt: skip
    result = done("evaluate", "lora", "--quiet", "--json")
    write_rows("shouted.jsonl", [{"text": row["text"].upper(), "spans": row["spans"]} for row in rows])
    done("evaluate", "lora", "--data", "shouted.jsonl", "--out", "shouted.json")
    shouted = json.loads(Path("shouted.json").read_text())
    said_of = [", ".join(f"{one['label']}: {one['text']}" for one in row["prediction"]) for row in
               predicted("lora", "shouted.jsonl", "shouted-out.jsonl")]  # fmt: skip
    assert shouted["tuned"]["answers"] == said_of and any(said_of)
    assert {one["text"] for one in shouted["tuned"]["sets"]["wrong"]} <= {row["text"].upper() for row in rows}
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["span_f1"]["value"] == pytest.approx(2 * right / (said + actual))
    assert metrics["span_precision"]["value"] == pytest.approx(right / said if said else 0)
    assert metrics["span_recall"]["value"] == pytest.approx(right / actual)
    assert metrics["span_f1"]["low"] <= metrics["span_f1"]["value"] <= metrics["span_f1"]["high"]
    details = json.loads(result.stdout)["sets"]
    assert sum(one["rows"] for one in details["types"]) == actual
    assert details["wrong_rows"] == sum(one != two for one, two in pairs)
    page = Path("runs/lora/report.html").read_text()
    assert "Spans" in page and "nats per word" in page
    logged = [json.loads(line) for line in Path("runs/lora/metrics.jsonl").read_text().splitlines()]
    values = [row["value"] for row in logged if row["kind"] == "score" and row["metric"] == "span_f1"]
    assert values[-1] == pytest.approx(metrics["span_f1"]["value"])


def test_preview_and_check_show_what_is_learned(here):
    result = rankwise("data", "preview", "rows.jsonl", "--model", "tiny-tagger", "--rows", "1", "--json", "--quiet")
    (row,) = json.loads(result.stdout)["rows"] if "rows" in result.stdout else json.loads(result.stdout)
    learned = [one["text"] for one in row["segments"] if one["learned"]]
    assert learned[0] == "an -> B-PER" and "os -> B-LOC" in learned and row["loss_tokens"] == len(learned)
    stray = {"tokens": ["Anna", "Oslo"], "tags": ["I-PER", "B-LOC"]}
    write_rows("stray.jsonl", [stray, *tokenised(6)])
    told = rankwise("data", "check", "stray.jsonl", "--model", "tiny-tagger").output
    assert "tags I- without a tag of the same type before them, read as B-: 1" in told
    write_rows("inside.jsonl", [{"text": "Anna works", "spans": [{"start": 0, "end": 3, "label": "PER"}]}, *spanned(4)])
    told = rankwise("data", "check", "inside.jsonl", "--model", "tiny-tagger").output
    assert "widened to whole words, such as 'Ann': 1" in told


@pytest.mark.parametrize(("words", "said"), [
    (("--set", "classification.sampling=balanced"), "classification.sampling is balanced, which needs rows"),
    (("--set", "classification.targets=numbers"), "classification.targets is numbers, but tags are names"),
    (("--set", "data.packing=true"), "data.packing has no effect"),
    (("--objective", "causal-lm"), "holds words with tags. Add --objective token-classification"),
    (("--objective", "sequence-classification"), "has a tag for each word, and no label"),
])  # fmt: skip
def test_what_means_nothing_here_is_refused_by_name(here, words, said):
    result = rankwise("train", "--model", "tiny-tagger", "--data", "rows.jsonl", "--run", "refused", *TRAINING, *words)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output


def test_bad_rows_and_other_rows_are_refused_with_file_and_line(here):
    bad = [{"text": "Anna", "spans": [{"start": 3, "end": 1, "label": "PER"}]}, {"text": "Anna", "spans": [3]}]
    write_rows("bad.jsonl", [*spanned(2), *bad])
    result = rankwise("train", "--model", "tiny-tagger", "--data", "bad.jsonl", "--run", "refused", *TRAINING)
    assert result.exit_code == 2 and "bad.jsonl:3: " in result.output and "bad.jsonl:4: " in result.output
    write_rows("unknown.jsonl", [{"text": "Anna", "spans": [{"start": 0, "end": 4, "label": "ORG"}]}])
    result = rankwise("evaluate", "lora", "--data", "unknown.jsonl")
    assert result.exit_code == 2 and "unknown.jsonl:1: the tag 'B-ORG' is in no training row" in result.output
    write_rows("plain.jsonl", [{"text": "Anna works."}])
    result = rankwise("train", "--model", "tiny-tagger", "--data", "plain.jsonl", "--run", "refused", *TRAINING,
                      "--objective", "token-classification")  # fmt: skip
    assert result.exit_code == 2 and "plain.jsonl:1: has no tags; token classification needs" in result.output


def test_a_plan_counts_the_head_of_the_training(here):
    result = done("plan", "--model", "tiny-tagger", "--data", "rows.jsonl", "--rank", "2", "--json")
    results = RunSnapshot.read("lora").manifest.results
    assert results is not None and str(results.trainable_parameters) in result.output
    words = rankwise("plan", "--model", "tiny-tagger", "--data", "rows.jsonl").output
    assert "one of 5 tags for each word" in words and " tokens x 5 outputs" in words, words


def test_a_program_gives_texts_and_lists_of_words(here):
    run = load_run("learned")
    assert run.predict([]) == []
    with pytest.raises(DataError, match="item 1 of the texts to tag: is 3"):
        run.predict(["Anna", 3])
