"""A classifier of texts begins with a fitted head, ends when validation says so, and says what its scores mean."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.tagged import spanned, tagger_folder
from rankwise import load_run
from rankwise.base.loading import load
from rankwise.cli.main import app
from rankwise.commands.evaluate import evaluate
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment, Planned
from rankwise.config.models import ModelConfig
from rankwise.evaluation.intervals import measured_share
from rankwise.forward.plan import plan
from rankwise.objectives.loss import target_loss, weight_of
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.objectives.text_classification.head_start import CONVERGED, features_of, fit_head
from rankwise.reporting.verdict import verdict_of
from rankwise.rows.classes import balanced_weights
from rankwise.rows.forms.formats import parse_row
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import LossRecord, silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.runs.snapshot import RunSnapshot
from rankwise.training.resume import settings_of
from rankwise.training.validation_classes import (
    WIDTH,
    ClassScorer,
    calibrate,
    never_predicted,
    rare_in,
    still_falling,
    temperature_of,
    words_predict,
)

THREE = TargetFacts(classes=("ok", "fault", "attack"), counts=(300, 3, 1), pooling="mean")
KINDS = {
    "classes": TargetFacts(classes=("bad", "good"), counts=(20, 40), pooling="mean"),
    "weighted": TargetFacts(classes=("bad", "good"), counts=(20, 40), weights=(3.0, 1.0), pooling="mean"),
    "balanced": TargetFacts(classes=("bad", "good"), counts=(20, 40), balanced=True, pooling="mean"),
    "several": TargetFacts(classes=("bad", "good", "long"), counts=(20, 40, 15), form="several", pooling="mean"),
    "numbers": TargetFacts(low=0, high=1, pooling="mean"),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "bert")


def rows_for(kind: str, model: Any) -> list[Tokens]:
    found = []
    for at, row in enumerate(labelled(60)):
        good, length = row["label"] == "good", row["text"].count("plot")
        target = {"several": [float(not good), float(good), float(length > 2)], "numbers": float(good) + at % 3 / 10}
        ids = tuple(model.tokenizer.encode(row["text"]))
        found.append(Tokens(ids, (False,) * len(ids), target=target.get(kind, int(good))))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_fitted_head_is_the_minimum(encoder, kind):
    objective = objective_named("sequence-classification", Facts(KINDS[kind]))
    model = load(ModelConfig(name=str(encoder), dtype="float32"), silent, objective.kind)
    rows, head = rows_for(kind, model), model.module.classifier
    fitted = fit_head(objective.loss, objective.heads(model), model.module, rows)
    assert fitted is not None and fitted.gradient <= CONVERGED and fitted.rows == 60
    targets = objective.targets
    if targets.balanced:
        targets = targets.model_copy(update={"weights": balanced_weights(targets.counts)})
    features = features_of(objective.loss, model.module, head, rows).double()
    values = torch.tensor([row.target for row in rows])
    weight, bias = (one.detach().double().requires_grad_() for one in (head.weight, head.bias))
    outputs = features @ weight.T + bias
    loss = target_loss(outputs if targets.classes else outputs[:, 0], values, targets) / weight_of(values, targets)
    scale = float((features**2).sum(1).mean())
    (loss + fitted.penalty * scale / 2 * (weight**2).sum()).backward()
    assert max(float(one.grad.abs().max()) for one in (weight, bias)) < 1e-4  # the head is float32
    constant = values.double().mean(0) if kind == "numbers" else None
    assert constant is None or loss.item() < float(((values - constant) ** 2).mean())


def test_a_head_that_features_tell_nothing_about_stays_as_it_was_drawn(encoder):
    objective = objective_named("sequence-classification", Facts(KINDS["classes"]))
    model = load(ModelConfig(name=str(encoder), dtype="float32"), silent, objective.kind)
    before = model.module.classifier.weight.clone()
    drawn = [Tokens(row.ids, row.loss_mask, target=at // 12 % 2) for at, row in enumerate(rows_for("x", model))]
    head = objective.loss, objective.heads(model), model.module
    assert fit_head(*head, drawn) is None and fit_head(*head, drawn[:6]) is None
    assert torch.equal(model.module.classifier.weight, before)


def scorer(actual: list[int], predicted: list[int], targets: TargetFacts = THREE) -> ClassScorer:
    rows = [Tokens((1,), (False,), target=one) for one in actual]
    made = ClassScorer(SimpleNamespace(targets=targets), None, rows)
    made.counted[9] = Counter(predicted), Counter(actual)
    return made


def loss(step: int, value: float) -> LossRecord:
    return LossRecord(step=step, loss=value, loss_tokens=9, sequences=9)


def test_figures_that_cannot_mean_anything_are_said():
    counted = scorer([0] * 29 + [1], [0] * 30)
    (rare,) = rare_in(counted)
    assert '"fault" (1), "attack" (0)' in rare and '"ok"' not in rare
    (one,) = never_predicted(counted, 9, 1e-3)
    assert 'the same class, "ok"' in one and "--learning-rate 0.00025" in one
    (never,) = never_predicted(scorer([0] * 20 + [1] * 6 + [2] * 5, [0] * 25 + [2] * 6), 9, 1e-3)
    assert '"fault" (6 rows)' in never and "classification.sampling=balanced" in never and "300" in never
    even = THREE.model_copy(update={"counts": (30, 20, 10)})
    (never,) = never_predicted(scorer([0] * 20 + [1] * 6 + [2] * 5, [0] * 25 + [2] * 6, even), 9, 1e-3)
    assert "sampling" not in never and "--epochs" in never
    fine = scorer([0, 1, 2] * 5, [0, 1, 2] * 5)
    assert rare_in(fine) == never_predicted(fine, 9, 1e-3) == [] == rare_in(scorer([0, 1], [0, 1], TargetFacts()))
    (falling,) = still_falling([loss(0, 2.0), loss(5, 1.0), loss(10, 0.8)], 10, 2.0)
    assert "from 1 to 0.8" in falling and "--epochs 4" in falling
    assert not still_falling([loss(0, 2.0), loss(5, 0.81), loss(10, 0.8)], 10, 2.0)
    assert not still_falling([loss(0, 2.0), loss(5, 1.0), loss(8, 0.5)], 10, 2.0)


@pytest.mark.parametrize(("more", "expected"), [
    ({}, (10.0, "best", 2)), ({"data": {"path": "x", "held_out": 0}}, (4.0, "last", None)),
    ({"data": {"path": "x", "held_out": 5}}, (10.0, "best", 2)),
    ({"training": {"steps": 7}}, (None, "last", None)), ({"training": {"epochs": 3}}, (3.0, "last", None)),
    ({"data": {"path": "x", "held_out": 5}, "validation": {"keep": "last"}}, (10.0, "last", None)),
    ({"data": {"path": "x", "held_out": 5}, "validation": {"patience": 5}}, (10.0, "best", 5)),
    ({"objective": "causal-lm"}, (6.0, "best", 2)), ({"objective": "causal-lm", "run": "300"}, (5.0, "best", 2)),
    ({"objective": "causal-lm", "run": "534"}, (None, "last", None)),
    ({"objective": "causal-lm", "training": {"batch_size": 2}, "run": "50"}, (4.0, "best", 2)),
    ({"objective": "causal-lm", "training": {"replay": {}}}, (None, "last", None)),
    ({"objective": "causal-lm", "data": {"path": "x", "held_out": 0}}, (None, "last", None)),
    ({"objective": "causal-lm", "training": {"steps": 3}}, (None, "last", None)),
    ({"objective": "image-classification"}, (None, "last", None)), ({"objective": "auto"}, (None, "last", None)),
])  # fmt: skip
def test_how_long_a_model_learns_where_nothing_is_said(more, expected):
    """A run is named after the number of its rows."""
    given = {"model": "m", "data": "x", "run": "40", "objective": "sequence-classification", **more}
    asked = Experiment(**given)
    found = asked.with_defaults(rows=int(asked.run), has_validation=asked.data.held_out != 0, by="loss")
    assert (found.training.epochs, found.validation.keep, found.validation.patience) == expected


def test_a_run_that_an_earlier_version_began_goes_on_without_these_defaults():
    texts, answers = (
        Experiment(model="m", data={"path": "x", "held_out": 5}, run="r", objective=name)
        for name in ("sequence-classification", "causal-lm")
    )
    kinds = (texts, THREE, "accuracy"), (texts, KINDS["several"], "loss"), (texts, KINDS["numbers"], "loss")
    for asked, targets, by in (*kinds, (answers, None, "loss")):
        now = asked.with_defaults(rows=9, has_validation=True, by=by)
        assert now.validation.by == by
        report = SimpleNamespace(
            validation_rows=5, format="classification", targets=targets, pairs=None, encoder_decoder=False,
            image_processing=None,
        )  # fmt: skip
        for stored in (asked, now):
            begun: Any = SimpleNamespace(
                run=SimpleNamespace(folder=Path("r")), experiment=stored,
                checkpoint=SimpleNamespace(data_report=report),
                manifest=SimpleNamespace(data=SimpleNamespace(training_sequences=9)),
            )  # fmt: skip
            assert settings_of(begun, asked) == stored
    by_loss = texts.model_copy(update={"validation": type(texts.validation)(by="loss")})
    assert by_loss.with_defaults(rows=9, has_validation=True, by="accuracy").validation.by == "loss"


def test_a_run_of_defaults_stops_keeps_the_best_and_says_what_it_stands_beside(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"body": row["text"], "queue": row["label"], "id": at} for at, row in enumerate(labelled(80))]
    words = ("--data", write_rows("rows.jsonl", rows), "--text", "body", "--label", "queue", "--ignore-columns", "id")
    words = ("train", "--model", str(encoder), *words, "--held-out", "20", "--run", "r", "--set", "model.dtype=float32")
    pooled = (*words, "--set", "classification.pooling=mean")
    result = CliRunner().invoke(app, list(pooled))
    assert result.exit_code == 0, (result.output, result.exception)
    said = " ".join(result.output.split())
    assert "the head begins with what fits 60 rows best" in said and "for comparison logistic regression on" in said
    run = RunSnapshot.finished("r")
    results = run.manifest.results
    assert run.experiment.validation.keep == "best" and run.experiment.training.epochs == 10
    assert run.history.steps[0].steps == run.experiment.training.total_steps(60), "the stored passes are made"
    assert run.manifest.forecast.trainable_parameters == results.trainable_parameters
    assert results.baselines["vectors"] == results.validation_accuracy_before
    assert results.baselines["largest_class"] == pytest.approx(0.65, abs=0.1)
    right = {one.step: one.value for one in run.history.scores if one.metric == "accuracy"}
    assert results.kept_step == min(right, key=lambda step: (-right[step], step))
    assert results.validation_accuracy_after == max(right.values())
    whole = measured_share(20 * max(right.values()), 20)
    interval = f"on 20 rows (95 % interval {whole.low:.3f} to {whole.high:.3f}; expect a little less on new rows)"
    assert interval in results.kept_why and f"selected step {results.kept_step}: the highest accuracy of" in said
    assert "the probabilities are not calibrated, which takes 50 validation rows" in said


def test_the_fitted_head_is_the_result_where_steps_only_harm_it(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data", write_rows("rows.jsonl", labelled(60)), "--held-out", "20", "--run", "r", "--rank", "2")
    settings = ("--set", "classification.pooling=mean", "--set", "model.dtype=float32", "--learning-rate", "0.3")
    length = ("--epochs", "2", "--keep", "best")
    result = CliRunner().invoke(app, ["train", "--model", str(encoder), *words, *settings, *length])
    assert result.exit_code == 0, (result.output, result.exception)
    run = RunSnapshot.finished("r")
    results = run.manifest.results
    assert results.kept_step == 0 and results.validation_loss_after == results.validation_loss_before
    assert "the result is the head that training began with" in " ".join(result.output.split())
    measured = evaluate("r", callback=silent).tuned.metrics["cross_entropy"].value
    assert measured == pytest.approx(results.validation_loss_after, abs=1e-5)


def tagged_rows(folder: Path) -> tuple[Any, Any, list[Tokens]]:
    tags = TargetFacts(classes=("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), counts=(9,) * 5, form="tags")
    objective = objective_named("token-classification", Facts(tags))
    model = load(ModelConfig(name=str(tagger_folder(folder)), dtype="float32"), silent, objective.kind)
    encoder = objective.rows.encoder(model.template, model.tokenizer, DataConfig(path="x"), 64)
    examples = [one for at, row in enumerate(spanned(60)) for one in parse_row(row, "spans", f"x:{at + 1}")]
    return objective, model, [row for outcome in encoder.encode(examples) for row in outcome.sequences]


@pytest.mark.parametrize("kind", ["classes", "weighted", "several", "tags"])
def test_a_temperature_keeps_every_prediction_and_never_raises_the_loss(encoder, kind, tmp_path):
    if kind == "tags":
        objective, model, rows = tagged_rows(tmp_path / "tagger")
    else:
        objective = objective_named("sequence-classification", Facts(KINDS[kind]))
        model = load(ModelConfig(name=str(encoder), dtype="float32"), silent, objective.kind)
        rows = rows_for(kind, model)
    head, own = model.module.classifier, ClassScorer(objective.predicting, model, rows)
    unweighted = objective.targets.model_copy(update={"weights": ()})

    def read() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(found.float(), objective.loss.learned(batch.targets, batch.loss_mask))
                for _, batch, found in objective.predicting.in_batches(model.module, rows, None)]  # fmt: skip

    def nats(of: list[tuple[torch.Tensor, torch.Tensor]], temperature: float = 1.0) -> float:
        return sum(float(target_loss(logits / temperature, values, unweighted)) for logits, values in of)

    for factor in (8.0, 0.02):  # far too sure, then far too unsure
        with torch.no_grad():
            head.weight.mul_(factor)
        before = read()
        temperature, told = calibrate(own)
        after = read()
        assert temperature is not None and f"divided by {temperature:.3g}" in told
        assert nats(after) <= nats(before) * (1 + 1e-6)
        for (now, _), (old, _) in zip(after, before, strict=True):
            torch.testing.assert_close(now * temperature, old, rtol=1e-4, atol=1e-5)
            same = (now > 0) == (old > 0) if kind == "several" else now.argmax(-1) == old.argmax(-1)
            assert bool(same.all())
        cost = [nats(before, math.exp(log)) + (log / WIDTH) ** 2 / 2 for log in np.linspace(-2, 2, 81)]
        assert nats(after) + (math.log(temperature) / WIDTH) ** 2 / 2 <= min(cost) * 1.001
    weight = head.weight.clone()
    nothing, told = calibrate(ClassScorer(objective.predicting, model, rows[:9]))
    assert nothing is None and "takes 50 validation rows" in told and torch.equal(head.weight, weight)
    head.requires_grad_(False)
    assert calibrate(own) == (None, "") and torch.equal(head.weight, weight)


def test_a_head_whose_logits_do_not_follow_is_left_alone(encoder):
    objective = objective_named("sequence-classification", Facts(KINDS["classes"]))
    model = load(ModelConfig(name=str(encoder), dtype="float32"), silent, objective.kind)
    rows, head = rows_for("classes", model), model.module.classifier
    with torch.no_grad():
        head.weight.mul_(40)
    weight = head.weight.clone()
    head.register_forward_hook(lambda _, inputs, outputs: outputs.tanh() * 9)
    temperature, told = calibrate(ClassScorer(objective.predicting, model, rows))
    assert temperature is None and "does not divide the logits" in told
    torch.testing.assert_close(head.weight, weight)


def test_rows_that_are_all_right_make_nothing_certain():
    logits, right = torch.tensor([[2.0, 0.0]]).expand(60, 2), torch.zeros(60, dtype=torch.long)
    assert 0.3 < temperature_of([(logits, right)], THREE) < 1.0
    assert temperature_of([(logits, torch.arange(60) % 2)], THREE) > 2.0


def test_a_result_that_is_too_sure_is_told_and_calibrated_for_every_reader(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {"good": "bad", "bad": "good"}
    noisy = [row | {"label": row["label"] if at % 4 else wrong[row["label"]]} for at, row in enumerate(labelled(60, 3))]
    words = ("--data", write_rows("rows.jsonl", labelled(24)), "--validation-data", write_rows("apart.jsonl", noisy))
    words = (
        "train",
        "--model",
        str(encoder),
        *words,
        "--set",
        "model.dtype=float32",
        "--run",
        "r",
        "--batch-size",
        "8",
    )
    words = (*words, "--steps", "60", "--learning-rate", "0.01", "--set", "classification.pooling=mean")
    result = CliRunner().invoke(app, list(words))
    said = " ".join(result.output.split())
    assert result.exit_code == 0, (result.output, result.exception)
    run = RunSnapshot.finished("r")
    results, last = run.manifest.results, run.history.losses[-1]
    assert results.temperature > 1.2 and f"divided by {results.temperature:.3g}" in said
    assert "the result is surer than it is right" in said and f"instead of {last.loss:.4f}" in said
    assert results.validation_loss_after < last.loss
    assert f"to {results.validation_loss_after:.3f} nats per row" in verdict_of(run)
    measured = evaluate("r", callback=silent).tuned.metrics["cross_entropy"].value
    assert measured == pytest.approx(results.validation_loss_after, abs=1e-5)
    tuned = load_run("r")
    found = tuned.predict([row["text"] for row in noisy])
    nats = [-math.log(one["probabilities"][row["label"]]) for one, row in zip(found, noisy, strict=True)]
    assert np.mean(nats) == pytest.approx(results.validation_loss_after, abs=1e-5)


def test_words_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rows = labelled(90)
    texts, labels = [row["text"] for row in rows], [int(row["label"] == "good") for row in rows]
    parts = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
             TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)]  # fmt: skip
    fitted = LogisticRegression(C=10, max_iter=1000).fit(
        hstack([one.fit_transform(texts[:60]) for one in parts]), labels[:60]
    )
    theirs = fitted.predict(hstack([one.transform(texts[60:]) for one in parts])).tolist()
    assert words_predict(texts[:60], labels[:60], texts[60:]) == theirs
    assert np.mean(np.equal(theirs, labels[60:])) > 0.9


def test_a_plan_counts_the_passes_of_a_training_without_validation_rows(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for count, epochs in ((40, 4.0), (60, 10.0)):
        data = write_rows(f"{count}.jsonl", labelled(count))
        config = Planned(model=str(encoder), data=data, training={"batch_size": 4})
        made = plan(config)
        assert made.config.training.epochs == epochs
        assert made.steps == {40: 40, 60: 135}[count]
