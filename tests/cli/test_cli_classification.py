"""`--objective sequence-classification` from training to predictions, and what is refused with one sentence."""

from __future__ import annotations

import json
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kit.classifiers import encoder_folder, labelled, scaled, write_rows
from kit.command import done, printed, rankwise
from kit.interrupted import whole_and_resumed
from rankwise.config.experiment import Experiment
from rankwise.evaluation.class_metrics import metric_rows
from rankwise.evaluation.metrics import METRICS
from rankwise.objectives.text_classification import FittedHead
from rankwise.reporting.provenance import forecast_and_fact
from rankwise.runs.row_facts import TargetFacts
from rankwise.runs.snapshot import RunSnapshot

TRAINING = ("--steps", "24", "--batch-size", "4", "--learning-rate", "0.01", "--set", "model.dtype=float32")
METHODS: dict[str, tuple[str, ...]] = {
    "lora": ("--rank", "2"),
    "adalora": ("--method", "adalora", "--budget", "2"),
    "dora": ("--rank", "2", "--set", "adapter.dora=true"),
    "head": ("--method", "head"),
    "full": ("--method", "full"),
}


LEARNING: dict[str, tuple[str, ...]] = {
    "adalora": ("--method", "adalora", "--budget", "8", "--learning-rate", "0.005"),
    "full": ("--method", "full", "--learning-rate", "0.002"),
}
"""With which 24 rows are learned by heart in 120 steps of 8."""
ONE_CLASS = "every validation row is given the same class"


def trained(run: str, data: str, *more: str, model: str = "tiny-bert") -> Any:
    result = done("train", "--model", model, "--data", data, "--run", run, *TRAINING, *more)
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the encoder, rows, and one run of each method."""
    folder = tmp_path_factory.mktemp("classification")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encoder_folder(Path("tiny-bert"))
        write_rows("rows.jsonl", labelled(24))
        write_rows("apart.jsonl", labelled(9, 24))
        write_rows("scaled.jsonl", scaled(20))
        for name, words in METHODS.items():
            trained(name, "rows.jsonl", "--validation-data", "apart.jsonl", *words)
        trained("numbers", "scaled.jsonl", "--held-out", "4")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def predicted(run: str, data: str, out: str) -> list[dict[str, Any]]:
    done("predict", run, "--data", data, "--out", out, "--overwrite", "--quiet")
    return [json.loads(line) for line in Path(out).read_text().splitlines()]


def base_for(run: str, outputs: int) -> Any:
    config = json.loads(Path(f"runs/{run}/adapter/adapter_config.json").read_text())
    return AutoModelForSequenceClassification.from_pretrained(config["base_model_name_or_path"], num_labels=outputs)


def logits_of(model: Any, texts: list[tuple[str, ...]]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained("tiny-bert")
    with torch.no_grad():
        return torch.cat([model.eval()(**tokenizer(*text, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize("run", ["lora", "adalora", "dora", "head"])
def test_peft_loads_what_was_written_and_gives_our_probabilities(here, run):
    torch.manual_seed(1)  # another head than the one that was trained begins here
    model = PeftModel.from_pretrained(base_for(run, 2), f"runs/{run}/adapter")
    rows = labelled(9, 24)
    theirs = logits_of(model, [(row["text"],) for row in rows]).double().softmax(-1)
    ours = predicted(run, "apart.jsonl", "peft.jsonl")
    shares = [[row["probability_bad"], row["probability_good"]] for row in ours]
    assert np.abs(theirs.numpy() - np.array(shares)).max() <= 1e-5
    assert [row["prediction"] for row in ours] == [("bad", "good")[at] for at in theirs.argmax(-1).tolist()]


def test_peft_gives_our_numbers(here):
    torch.manual_seed(1)
    model = PeftModel.from_pretrained(base_for("numbers", 1), "runs/numbers/adapter")
    rows = scaled(20)
    theirs = logits_of(model, [(row["text"], row["text_pair"]) for row in rows])[:, 0]
    ours = [row["prediction"] for row in predicted("numbers", "scaled.jsonl", "numbers.jsonl")]
    assert np.abs(theirs.numpy() - np.array(ours)).max() <= 1e-5


@pytest.mark.parametrize("run", [*METHODS, "numbers"])
def test_the_forecast_has_the_parameters_the_steps_and_the_file_of_the_training(here, run):
    manifest = RunSnapshot.read(run).manifest
    forecast, results = manifest.forecast, manifest.results
    assert forecast is not None and results is not None
    assert forecast.trainable_parameters == results.trainable_parameters or run == "adalora"
    assert forecast.steps == results.steps == 24
    assert forecast.adapter_bytes == (None if run == "full" else results.adapter_bytes) or run == "adalora"
    assert set(forecast_and_fact(manifest)) >= {"trainable_parameters", "steps", "peak_bytes", "seconds"}
    assert "answers" not in forecast.memory or forecast.memory["answers"] == 0


@pytest.mark.parametrize("method", LEARNING)
def test_the_rows_are_learned(here, method):
    rows, run = labelled(24), f"{method}-learned"
    known = ("--validation-data", write_rows("known.jsonl", rows), "--steps", "120", "--batch-size", "8")
    assert ONE_CLASS not in trained(run, "rows.jsonl", *known, *LEARNING[method]).stderr
    write_rows("texts.jsonl", [{"text": row["text"]} for row in rows])
    assert [row["prediction"] for row in predicted(run, "texts.jsonl", "learned.jsonl")] == [
        row["label"] for row in rows
    ]


def test_the_head_lies_in_the_adapter_as_peft_names_it(here):
    config = json.loads(Path("runs/lora/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    tensors = load_file("runs/lora/adapter/adapter_model.safetensors")
    assert tensors["base_model.model.classifier.weight"].shape == (2, 32)
    head = load_file("runs/head/adapter/adapter_model.safetensors")
    assert not [name for name in head if "lora" in name]


def test_a_full_model_has_the_names_of_its_classes_and_our_predictions(here):
    model = AutoModelForSequenceClassification.from_pretrained("runs/full/model")
    assert model.config.id2label == {0: "bad", 1: "good"}
    theirs = logits_of(model, [(row["text"],) for row in labelled(9, 24)]).double().softmax(-1)
    ours = [row["probability_good"] for row in predicted("full", "apart.jsonl", "full.jsonl")]
    assert np.abs(theirs[:, 1].numpy() - np.array(ours)).max() <= 1e-5


@pytest.mark.parametrize("run", ["lora", "head"])
def test_a_merged_export_is_a_classifier_for_transformers(here, run):
    done("export", run, "--to", f"merged-{run}", "--format", "merged", "--dtype", "float32")
    model = AutoModelForSequenceClassification.from_pretrained(f"merged-{run}")
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert not Path(f"merged-{run}", "chat_template.jinja").exists(), "it writes no text"
    assert "answers" not in json.loads(Path("runs", run, "report.json").read_text())["verdict"]
    theirs = logits_of(model, [(row["text"],) for row in labelled(9, 24)]).double().softmax(-1)
    ours = [row["probability_good"] for row in predicted(run, "apart.jsonl", "merged.jsonl")]
    assert np.abs(theirs[:, 1].numpy() - np.array(ours)).max() <= 1e-5


def test_an_adapter_s_folder_alone_knows_its_classes(here):
    alone, run = (predicted(name, "apart.jsonl", "alone.jsonl") for name in ("runs/lora/adapter", "lora"))
    for one, other in zip(alone, run, strict=True):  # a folder does not say in which number format it was trained
        assert one["probability_bad"] == pytest.approx(other["probability_bad"], abs=0.02)


def test_evaluation_counts_what_predict_says(here):
    summary = printed("evaluate", "lora", "--quiet")
    rows = predicted("lora", "apart.jsonl", "counted.jsonl")
    hits = [row["prediction"] == row["label"] for row in rows]
    accuracy = summary["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(sum(hits) / len(hits))
    assert accuracy["low"] < accuracy["value"] <= accuracy["high"]
    true = [row[f"probability_{row['label']}"] for row in rows]
    assert summary["metrics"]["cross_entropy"]["value"] == pytest.approx(-np.log(true).mean(), rel=1e-3)
    assert set(summary["metrics"]) == {
        "cross_entropy", "accuracy", "balanced_accuracy", "f1", "matthews", "calibration_error",
    }  # fmt: skip
    details = summary["classification"]
    assert [one["name"] for one in details["classes"]] == ["bad", "good"]
    confused = {(rows[at]["label"], rows[at]["prediction"]) for at in range(len(rows))}
    names = [one["name"] for one in details["classes"]]
    assert {(names[actual], names[predicted]) for actual, predicted, _ in details["confusion"]} == confused
    assert sum(count for *_, count in details["confusion"]) == len(rows)
    assert details["wrong_rows"] == len(rows) - sum(hits)


def test_the_most_confident_wrong_rows_come_first_with_their_text(here):
    wrong_labels = [
        {"label": "bad" if row["label"] == "good" else "good", "text": f"{row['text']}. I can't log  In: é!"}
        for row in labelled(9, 24)
    ]  # not as its tokens decode
    result = rankwise("evaluate", "lora", "--data", write_rows("swapped.jsonl", wrong_labels), "--json", "--quiet")
    details = json.loads(result.stdout)["classification"]
    rows = {row["text"]: row for row in predicted("lora", "swapped.jsonl", "swapped-out.jsonl")}
    wrong = {text for text, row in rows.items() if row["prediction"] != row["label"]}
    assert details["wrong_rows"] >= 5 and {one["text"] for one in details["wrong"]} == wrong
    sure = [one["probability"] for one in details["wrong"]]
    assert sure == sorted(sure, reverse=True)
    lines = [json.loads(line)["text"] for line in Path("swapped.jsonl").read_text().splitlines()]
    numbers = [int(one["name"].removeprefix("swapped.jsonl:")) for one in details["wrong"]]
    assert len(set(numbers)) == len(numbers)
    assert [lines[number - 1] for number in numbers] == [one["text"] for one in details["wrong"]]
    assert "I can't log  In: é!" in unescape(Path("runs/lora/report.html").read_text())
    for one in details["wrong"]:
        row = rows[one["text"]]
        assert (one["actual"], one["predicted"]) == (row["label"], row["prediction"])
        assert one["probability"] == pytest.approx(row[f"probability_{one['predicted']}"], abs=0.02)
        assert one["probability"] + one["probability_of_actual"] == pytest.approx(1)


def test_a_training_gives_the_accuracy_of_what_it_saved(here):
    words = ("--validation-data", "apart.jsonl", "--validate-every", "10", "--keep", "best", "--json")
    given = json.loads(trained("measured", "rows.jsonl", *words).stdout)
    rows = predicted("measured", "apart.jsonl", "measured.jsonl")
    assert given["validation_accuracy"] == sum(row["prediction"] == row["label"] for row in rows) / len(rows)
    logged = [json.loads(line) for line in Path("runs/measured/metrics.jsonl").read_text().splitlines()]
    at = {row["step"]: row["value"] for row in logged if row["kind"] == "score" and row["metric"] == "accuracy"}
    assert given["validation_accuracy_before"] == at[0]
    assert given["validation_accuracy_after"] == given["validation_accuracy"] == at[given["kept_step"]]
    (listed,) = [run for run in printed("runs")["runs"] if run["name"] == "measured"]
    assert listed["validation_accuracy"] == given["validation_accuracy"]
    numbers = json.loads(Path("runs/numbers/manifest.json").read_text())["results"]
    assert numbers["validation_accuracy_after"] is None and numbers["validation_loss_after"] is not None


def test_evaluation_of_numbers(here):
    others = write_rows("others.jsonl", [row | {"text": f"a {row['text']}"} for row in scaled(20)])
    metrics = printed("evaluate", "numbers", "--data", others, "--quiet")["metrics"]
    rows = predicted("numbers", "others.jsonl", "others-out.jsonl")
    given, true = (np.array([row[name] for row in rows]) for name in ("prediction", "label"))
    ranks = [[(values < one).sum() + (values == one).sum() / 2 for one in values] for values in (given, true)]
    assert metrics["pearson"]["value"] == pytest.approx(np.corrcoef(given, true)[0, 1], abs=1e-4)
    assert metrics["spearman"]["value"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)
    assert metrics["mean_squared_error"]["value"] == pytest.approx(((given - true) ** 2).mean(), rel=1e-3)


def test_the_objective_follows_from_the_model_and_is_told(here):
    result = trained("chosen", "rows.jsonl", "--steps", "1")
    assert "the objective is sequence-classification: tiny-bert is an encoder (bert)" in result.stderr
    assert "2 classes: bad (8 rows), good (16 rows)" in result.stderr
    assert json.loads(Path("runs/chosen/config.json").read_text())["objective"] == "sequence-classification"


def test_a_decoder_learns_labels_as_answers_unless_told_otherwise(here, tiny_folder):
    result = trained("answers", "rows.jsonl", "--steps", "1", model=str(tiny_folder))
    assert "the labels are learned as answers" in result.stderr
    words = ("--objective", "sequence-classification", "--steps", "2")
    result = trained("scored", "rows.jsonl", *words, model=str(tiny_folder))
    assert json.loads(Path("runs/scored/adapter/adapter_config.json").read_text())["modules_to_save"] == ["score"]
    assert {row["prediction"] for row in predicted("scored", "rows.jsonl", "scored.jsonl")} <= {"bad", "good"}


@pytest.mark.parametrize("method", ["head", "balanced"])
def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(here, method):
    def experiment(run: str) -> Experiment:
        return Experiment(
            model={"name": "tiny-bert", "dtype": "float32"}, run=run,
            adapter={"method": "lora" if method == "balanced" else method},
            classification={"sampling": "balanced" if method == "balanced" else "rows"},
            data={"path": "rows.jsonl", "validation": "apart.jsonl"},
            training={"steps": 12, "batch_size": 4, "learning_rate": 0.01, "checkpoint_steps": 5},
        )  # fmt: skip

    whole, resumed = whole_and_resumed(experiment, 8, method)
    assert whole == resumed


def test_activation_checkpointing_changes_no_byte(here):
    for blocks in (0, 1):
        words = ("--set", f"training.activation_checkpointing={blocks}", "--steps", "4")
        trained(f"blocks-{blocks}", "rows.jsonl", *METHODS["lora"], *words)
    saved, again = (Path(f"runs/blocks-{blocks}/adapter/adapter_model.safetensors") for blocks in (0, 1))
    assert saved.read_bytes() == again.read_bytes()


def test_weights_of_classes_are_told_and_change_the_result(here):
    result = trained("weighted", "rows.jsonl", *METHODS["lora"], "--set", "classification.class_weights=balanced")
    assert "weights in the loss: 1.5, 0.75" in result.stderr
    one, other = (load_file(f"runs/{run}/adapter/adapter_model.safetensors") for run in ("weighted", "lora"))
    name = "base_model.model.classifier.weight"
    assert not torch.equal(one[name], other[name])


BALANCED = ("--set", "classification.sampling=balanced")


def test_balanced_sampling_is_told_and_shows_rare_classes_as_often(here):
    """Six rows are held out, four of them good as in all rows; so a pass of 18 shows 6 bad rows 9 times."""
    words = (*METHODS["lora"], "--held-out", "6", "--steps", "5")
    result = trained("balanced", "rows.jsonl", *words, *BALANCED)
    told = " ".join(result.stderr.split())
    assert "a pass shows each row of a class: bad 1.5, good 0.75" in told
    report = json.loads(Path("runs/balanced/data_report.json").read_text())
    assert report["class_repeats"] == {"bad": 1.5, "good": 0.75} and report["targets"]["balanced"]
    assert "balanced sampling" in Path("runs/balanced/report.html").read_text()
    trained("unbalanced", "rows.jsonl", *words)
    one, other = (load_file(f"runs/{run}/adapter/adapter_model.safetensors") for run in ("balanced", "unbalanced"))
    assert not torch.equal(one["base_model.model.classifier.weight"], other["base_model.model.classifier.weight"])


@pytest.mark.parametrize(
    ("data", "words", "said"),
    [("rows.jsonl", ("--set", "classification.class_weights=balanced"), "counts rare classes twice"),
     ("scaled.jsonl", (), "the labels are numbers"),
     ("rows.jsonl", ("--objective", "causal-lm"), "the setting classification has no effect")],
)  # fmt: skip
def test_balanced_sampling_is_refused_where_it_means_nothing(here, data, words, said):
    result = rankwise(
        "train", "--model", "tiny-bert", "--data", data, "--run", "bad", "--steps", "8", *BALANCED, *words
    )
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()), result.output


BAD_ROWS: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "no label": ([{"text": "a film"}] * 4, ("rows-bad.jsonl:1", "label")),
    "one class": (
        [{"text": f"film {n}", "label": "good"} for n in range(4)], ("rows-bad.jsonl:1", "'good'", "two classes"),
    ),
    "a list as a label": ([*labelled(4), {"text": "film", "label": ["good"]}], ("rows-bad.jsonl:5", "['good']")),
    "a truth as a label": ([*labelled(4), {"text": "film", "label": True}], ("rows-bad.jsonl:5", "true")),
    "no label in one row": ([*labelled(4), {"text": "film", "label": None}], ("rows-bad.jsonl:5", "null")),
    "an empty text": ([*labelled(4), {"text": " ", "label": "good"}], ("rows-bad.jsonl:5", "text")),
    "a number that is none": (
        [*scaled(4), {"text": "film", "label": "nan"}], ("rows-bad.jsonl:5", "'nan'", "number"),
    ),
    "a name among numbers": ([*scaled(4), {"text": "film", "label": "good"}], ("rows-bad.jsonl:5", "'good'", "number")),
    "one number": ([{"text": f"film {n}", "label": 2.5} for n in range(4)], ("rows-bad.jsonl:1", "2.5")),
    "a conversation": ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                      {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}],
                       ("rows-bad.jsonl:1", "conversation")),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD_ROWS))
def test_bad_rows_are_refused_in_one_sentence(here, kind):
    rows, said = BAD_ROWS[kind]
    result = rankwise("train", "--model", "tiny-bert", "--data", write_rows("rows-bad.jsonl", rows), "--run", "bad")
    assert result.exit_code == 2, (result.output, result.exception)
    for part in said:
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("runs/bad").exists()


def test_a_label_that_no_training_row_has_is_refused_in_validation(here):
    rows = write_rows("unseen.jsonl", [*labelled(3), {"text": "film", "label": "ugly"}])
    result = rankwise(
        "train", "--model", "tiny-bert", "--data", "rows.jsonl", "--validation-data", rows, "--run", "bad"
    )
    assert result.exit_code == 2
    assert "unseen.jsonl:4: the label 'ugly' is in no training row; the classes are 'bad', 'good'" in result.stderr


@pytest.mark.parametrize("labels", ["good bad", "good"])
def test_a_classifier_that_gives_all_rows_one_class_is_named(here, labels):
    """Equal texts get equal answers. Rows of one class say nothing of a classifier."""
    run, several = f"one-class-{len(labels)}", " " in labels
    alike = write_rows("alike.jsonl", [{"text": "a film", "label": label} for label in labels.split() * 8])
    result = trained(run, "rows.jsonl", "--validation-data", alike, "--steps", "2")
    assert several == (ONE_CLASS in result.stderr)
    warnings = RunSnapshot.finished(run).manifest.warnings
    assert several == any(ONE_CLASS in one and "--learning-rate 0.0025" in one for one in warnings)


def test_a_whole_number_is_the_same_class_in_a_table_and_in_json(here):
    rows = [{"text": f"film {n}", "label": n % 2} for n in range(8)]
    Path("floats.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}.0\n" for row in rows))
    for data, apart in (("floats.csv", write_rows("whole.jsonl", rows)), ("whole.jsonl", "floats.csv")):
        trained(f"whole-{data[:5]}", data, "--validation-data", apart, "--steps", "1")
    report = json.loads(Path("runs/whole-float/data_report.json").read_text())
    assert report["targets"]["classes"] == ["0.0", "1.0"] and report["validation"]["skipped"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--system", "Be brief."), "data.system"),
        (("--set", "data.packing=true"), "data.packing"),
        (("--set", "data.learned=everything"), "data.learned"),
        (("--set", "adapter.start=eva"), "adapter.start eva"),
        (("--held-out", "4", "--set", "validation.by=exact", "--set", "validation.answers=2"), "by exact"),
        (("--objective", "causal-lm", "--set", "classification.class_weights=balanced"), "classification"),
        (("--objective", "causal-lm", "--method", "head"), "adapter.method head"),
        (("--backend", "compiled"), "training.backend"),
        (("--held-out", "4", "--validate-every", "4", "--set", "validation.by=pearson"), "validation.by"),
        (("--set", 'classification.class_weights={"ugly": 2}'), "'ugly'"),
    ],
)
def test_a_setting_without_effect_is_refused(here, words, said):
    result = rankwise("train", "--model", "tiny-bert", "--data", "rows.jsonl", "--run", "bad", "--steps", "8", *words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert said in result.stderr, result.stderr


@pytest.mark.parametrize(
    "words",
    [("generate", "lora", "--prompt", "hello"), ("chat", "lora"), ("evaluate", "lora", "--task", "demo"),
     ("evaluate", "lora", "--blocks", "2"),
     ("predict", "lora", "--data", "apart.jsonl", "--out", "no.jsonl", "--base"),
     ("predict", "lora", "--data", "apart.jsonl", "--out", "no.jsonl", "--temperature", "1")],
)  # fmt: skip
def test_what_only_language_models_can_do_is_refused(here, words):
    result = rankwise(*words)
    assert result.exit_code in (1, 2), (result.output, result.exception)
    assert "classifier" in result.stderr
    assert not Path("no.jsonl").exists()


@pytest.mark.parametrize(("words", "quoted"), [
    (("generate", "lora", "--prompt", "It's good, is it?"), shlex.quote("It's good, is it?")),
    (("chat", "lora"), '"…"'),
])  # fmt: skip
def test_who_asks_a_classifier_in_words_is_told_the_command_that_answers(here, words, quoted):
    result = rankwise(*words, "--json")
    problem = json.loads(result.stdout)
    assert result.exit_code == problem["exit_code"] == 2
    assert f"writes no text. Ask it with: rankwise predict lora --text {quoted}" in problem["error"]


def test_what_a_classifier_of_texts_has_forgotten_is_said_not_to_be_measured(here):
    told = rankwise("evaluate", "lora")
    assert "what this classifier has forgotten is not measured" in told.stderr and "--other-images" not in told.stderr
    result = rankwise("evaluate", "lora", "--other-images", "rows.jsonl")
    assert result.exit_code == 2 and "--other-images is for models of images" in result.stderr


def test_a_text_that_is_too_long_is_left_out_or_cut(here):
    rows = [*labelled(12), {"text": "the " * 100, "label": "good"}]
    result = trained("left-out", write_rows("long.jsonl", rows), "--steps", "1")
    assert "rows: 13 read, 12 used, left out: 1 too long" in " ".join(result.stderr.split())
    result = trained("cut", "long.jsonl", "--steps", "1", "--set", "data.too_long=truncate")
    assert "truncated: 1" in result.stderr
    long = write_rows("long-texts.jsonl", [{"text": "the " * 100}, {"text": "a film"}])
    assert len(predicted("cut", long, "cut.jsonl")) == 2
    result = rankwise("predict", "left-out", "--data", long, "--out", "never.jsonl")
    assert result.exit_code == 2
    assert "long-texts.jsonl:1: has 102 tokens" in result.stderr


def test_the_page_says_what_the_loss_is_of(here):
    page = Path("runs/lora/report.html").read_text()
    assert "nats per row" in page
    assert "nats per loss token" not in page


def test_a_probability_keeps_its_column(here):
    words = ("--data", "apart.jsonl", "--out", "taken.jsonl", "--column", "probability_bad")
    result = rankwise("predict", "lora", *words)
    assert result.exit_code == 2 and '"probability_bad" is that of a class' in result.stderr
    assert not Path("taken.jsonl").exists()


def test_rows_are_classified_and_not_answered_with_tokens(here):
    result = rankwise("predict", "lora", "--data", "apart.jsonl", "--out", "told.jsonl", "--overwrite", "--quiet")
    assert "9 of 9 rows classified in" in result.stdout and "token" not in result.stdout


def test_a_card_and_an_export_say_how_a_classifier_is_loaded(here, tmp_path):
    card = Path("runs/lora/adapter/README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "CausalLM" not in card
    lines = card.split("```python\n")[1].split("```")[0].replace("path/or/name/of/base", "tiny-bert")
    exec(lines.replace("path/to/this/folder", "runs/lora/adapter"), {})  # noqa: S102
    for format, call in (("peft", "num_labels=2"), ("portable", "num_labels=2"), ("merged", "AutoModelForSequence")):
        result = rankwise("export", "lora", "--to", str(tmp_path / format), "--format", format)
        assert result.exit_code == 0 and call in result.stdout and "CausalLM" not in result.stdout, result.output
        assert "vLLM" not in result.stdout


def test_a_head_alone_is_inspected_and_has_no_rank_to_export(here, tmp_path):
    assert "head only, no adapters in any layer" in rankwise("inspect", "head").stdout
    result = rankwise("export", "head", "--to", str(tmp_path / "portable"), "--format", "portable")
    assert result.exit_code == 2 and "no adapted layers" in result.stderr
    assert rankwise("export", "head", "--to", str(tmp_path / "peft")).exit_code == 0


def test_columns_that_are_not_known_are_to_be_named_as_those_of_a_classifier(here):
    rows = write_rows("reviews.jsonl", [{"review": row["text"], "stars": row["label"]} for row in labelled(8)])
    result = rankwise("train", "--model", "tiny-bert", "--data", rows, "--run", "named")
    assert result.exit_code == 2 and "--text COLUMN and --label COLUMN" in " ".join(result.stderr.split())
    trained("named", rows, "--text", "review", "--label", "stars", "--steps", "1")


def test_a_table_without_names_of_columns_is_told(here):
    Path("headless.tsv").write_text("a1\t1\t\tThe sailors rode the breeze clear of the rocks.\na1\t0\t*\tThe film.\n")
    result = rankwise("train", "--model", "tiny-bert", "--data", "headless.tsv", "--run", "bad")
    assert result.exit_code == 2 and "Add a first line that names the columns" in " ".join(result.stderr.split())
    assert "--prompt" not in result.stderr


def test_an_empty_second_text_is_none(here):
    Path("pairs.csv").write_text("text,text_pair,label\na film,,good\nthe plot,a plot,bad\n" * 3)
    trained("pairs", "pairs.csv", "--steps", "1")
    one, other = predicted("pairs", "pairs.csv", "pairs.jsonl")[:2]
    alone = predicted("pairs", write_rows("alone.jsonl", [{"text": "a film"}]), "alone-out.jsonl")[0]
    assert one["probability_bad"] == alone["probability_bad"] != other["probability_bad"]


def test_a_label_that_rows_bring_is_not_looked_at(here):
    trained("ordered", "rows.jsonl", "--steps", "1", "--set", 'data.labels=["good", "bad"]')
    for run in ("lora", "ordered"):
        rows = [{"text": "a film", "label": label} for label in ("ugly", ["x"], None, True)]
        given = predicted(run, write_rows("strange.jsonl", rows), "strange-out.jsonl")
        assert [row["label"] for row in given] == ["ugly", ["x"], None, True]
        assert len({row["probability_bad"] for row in given}) == 1


def test_a_name_of_a_class_steers_no_terminal_and_stays_on_its_line(here):
    names = ("\x1b[31mred", "a\u202eb", "c\nd", "e" * 200)
    rows = [{"text": f"a film {number}", "label": names[number % 4]} for number in range(16)]
    result = trained("names", write_rows("names.jsonl", rows), "--steps", "1", "--held-out", "4")
    checked = rankwise("data", "check", "names.jsonl", "--model", "tiny-bert")
    told = result.output + rankwise("evaluate", "names").output + checked.output
    assert not any(sign in told for sign in ("\x1b", "\u202e", "c\nd", "e" * 61))
    assert "\\x1b[31mred" in told and "c d" in told


def test_a_head_that_the_model_brings_is_trained_further_and_this_is_told(here, monkeypatch):
    fitted = []
    monkeypatch.setattr(
        FittedHead, "fit", lambda own, model, rows: fitted.append(model.module.config.name_or_path[-5:])
    )
    for name, outputs in (("two", 2), ("three", 3)):
        AutoModelForSequenceClassification.from_pretrained("tiny-bert", num_labels=outputs).save_pretrained(name)
        AutoTokenizer.from_pretrained("tiny-bert").save_pretrained(name)
    result = {name: trained(f"from-{name}", "rows.jsonl", "--steps", "1", model=name) for name in ("two", "three")}
    assert "trained further and not drawn anew" in result["two"].stderr
    assert fitted == ["three"], "its own head keeps what it knows"
    assert (
        "trained further"
        not in result["three"].stderr
        + rankwise("predict", "from-two", "--data", "apart.jsonl", "--out", "o.csv").stderr
    )


def test_rows_whose_target_is_no_number_are_left_out_where_this_is_asked(here):
    rows = write_rows("nan.jsonl", [*scaled(8), {"text": "film", "label": "nan"}])
    words = ("--set", "classification.targets=numbers", "--on-bad-row", "skip", "--steps", "1")
    assert "rows: 9 read, 8 used, left out: 1" in trained("nan", rows, *words).stderr
    assert json.loads(Path("runs/nan/data_report.json").read_text())["targets"]["high"] == scaled(8)[-1]["label"]


def test_a_class_without_usable_rows_and_validation_rows_that_are_left_out_are_told(here):
    rows = write_rows("lost.jsonl", [*labelled(12), {"text": "a " * 100, "label": "rare"}])
    apart = write_rows("lost-apart.jsonl", [*labelled(6, 24), {"text": "film", "label": "ugly"}])
    words = ("--validation-data", apart, "--on-bad-row", "skip", "--steps", "1")
    told = " ".join(trained("lost", rows, *words).stderr.split())
    assert "warning: no row that can be used has one of these classes: 'rare'" in told
    assert "validation rows: 7, left out: 1" in told
    assert "no row that can be used" not in trained("found", "rows.jsonl", "--steps", "1").stderr


def test_predictions_that_differ_by_rounding_alone_have_no_correlation():
    actual = [0.0, 1.0, 2.0, 3.0, 4.0]
    for step, expected in ((2e-8, 0.0), (0.1, -1.0)):
        rows = metric_rows(TargetFacts(low=0.0, high=4.0), [2.5 - step * one for one in actual], actual)
        for metric in ("pearson", "spearman"):
            assert METRICS[metric].value(rows[metric]) == pytest.approx(expected), metric


def test_the_card_of_a_decoder_without_padding_token_loads_the_model_that_was_trained(here):
    folder = encoder_folder(Path("tiny-decoder"))
    tokenizer = AutoTokenizer.from_pretrained(folder)  # which ends each text with [SEP]
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]", unk_token="[UNK]")
    plain.save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    LlamaForCausalLM(LlamaConfig(vocab_size=20, **shape, eos_token_id=3)).save_pretrained(folder)
    trained("decoder", "rows.jsonl", "--objective", "sequence-classification", model="tiny-decoder")
    text = "the film is kind"
    lines = Path("runs/decoder/adapter/README.md").read_text().split("```python\n")[1].split("```")[0]
    lines = lines.replace("path/or/name/of/base", "tiny-decoder").replace("path/to/this/folder", "runs/decoder/adapter")
    names: dict[str, Any] = {}
    exec(lines, names)  # noqa: S102
    theirs = names["model"](**names["tokenizer"](text, return_tensors="pt")).logits.double().softmax(-1)[0, 0].item()
    [ours] = predicted("decoder", write_rows("one.jsonl", [{"text": text}]), "one-out.jsonl")
    assert theirs == pytest.approx(ours["probability_bad"], abs=1e-5)


def test_rows_that_are_not_measured_are_counted(here):
    rows = write_rows("long-measured.jsonl", [*labelled(9, 40), {"text": "the " * 100, "label": "good"}])
    result = done("evaluate", "lora", "--data", rows, "--json")
    summary = json.loads(result.stdout)
    assert (summary["n"], summary["left_out"]) == (9, 1)
    assert "1 of 10 rows of long-measured.jsonl are not measured: 1 too long" in " ".join(result.stderr.split())
