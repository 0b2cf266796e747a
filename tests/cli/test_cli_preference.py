"""Preference tuning by the command line: what is said, what is refused with exit 2, and that nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.command import done, printed, rankwise
from rankwise.config.experiment import Planned
from rankwise.forward.plan import plan

TURNS = [{"role": "user", "content": "What is blue?"}]


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"What is land {number}?", "chosen": f"Town {number}.", "rejected": f"I cannot say, {number}."}


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair(number)) + "\n" for number in range(12)))
    (tmp_path / "base").symlink_to(tiny_folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ("train", "--model", "base", "--objective", "preference", "--steps", 4, "--batch-size", 2, "--rank", 2)


def test_a_training_says_how_many_pairs_it_orders_right(home):
    summary = printed(*TRAIN, "--data", "pairs.jsonl", "--held-out", 4, "--run", "a")
    preference = summary["preference"]
    assert preference["pairs"] == 4 and preference["accuracy_before"] == 0.5
    assert preference["accuracy_after"]["low"] <= preference["accuracy_after"]["value"] <= 1
    report = json.loads(Path("runs/a/data_report.json").read_text())
    assert report["pairs"]["rows"] == 12 and report["pairs"]["loss"] == "dpo"
    steps = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert all({"margin", "preference_accuracy"} <= step.keys() for step in steps if step["kind"] == "step")


def test_a_loss_and_its_weight_are_flags_and_what_is_trained_chats(home):
    words = ("--data", "pairs.jsonl", "--held-out", 4, "--run", "a")
    result = done(*TRAIN, *words, "--preference-loss", "orpo", "--beta", 0.5)
    assert "preference accuracy" in result.stdout and "nats per pair" in result.stdout
    settings = json.loads(Path("runs/a/config.json").read_text())
    assert settings["preference"] == {"loss": "orpo", "beta": 0.5}
    done("generate", "a", "--prompt", "What is land 1?", "--max-new-tokens", 4)


def test_bad_pairs_are_refused_together_with_their_lines(home):
    wrong: list[dict[str, Any]] = [
        pair(1) | {"rejected": "Town 1."}, pair(2) | {"chosen": ""}, {"prompt": "q", "chosen": "a"},
        {"chosen": [*TURNS, {"role": "assistant", "content": "a"}],
         "rejected": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "b"}]},
        pair(5) | {"rejected": 7},
    ]  # fmt: skip
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [pair(0), *wrong]))
    result = rankwise(*TRAIN, "--data", "bad.jsonl", "--run", "a")
    assert result.exit_code == 2 and not Path("runs/a").exists()
    for number, words in enumerate(
        ("same answer", "chosen is empty", "no 'rejected'", "prompts of chosen and rejected differ", "rejected is 7"), 2
    ):
        assert any(f"bad.jsonl:{number}: " in line and words in line for line in result.stderr.splitlines()), words
    assert "Traceback" not in result.output


def test_pairs_are_named_where_they_are_met_without_the_objective(home):
    result = rankwise("train", "--model", "base", "--data", "pairs.jsonl", "--run", "a", "--steps", 2)
    assert result.exit_code == 2 and "To train on pairs, add --objective preference" in result.stderr
    checked = rankwise("data", "check", "pairs.jsonl", "--model", "base")
    assert checked.exit_code == 0 and "preference pairs" in checked.output
    shown = rankwise("data", "preview", "pairs.jsonl", "--model", "base", "--rows", 1)
    assert "pairs.jsonl:1 chosen" in shown.stdout and "pairs.jsonl:1 rejected" in shown.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("advise",), "the objective is preference, and advise compares answers alone"),
        (("train", "--run", "a", "--anchor", 1), "training.anchor has no effect with the objective preference"),
        (("train", "--run", "a", "--beta", 0), "preference.beta"),
        (("train", "--run", "a", "--preference-loss", "ppo"), "preference.loss"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(words, sentence, home):
    result = rankwise(*words, "--model", "base", "--data", "pairs.jsonl", "--objective", "preference")
    assert result.exit_code == 2 and sentence in result.stderr, result.output


def test_an_encoder_and_images_are_refused(home, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    BertForSequenceClassification(BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )).save_pretrained(tmp_path / "bert")  # fmt: skip
    result = rankwise("train", "--model", "bert", "--data", "pairs.jsonl", "--objective", "preference", "--run", "a")
    assert result.exit_code == 2 and "the objective is preference, but bert (bert)" in result.stderr


def test_a_plan_counts_both_conversations_of_a_pair(home):
    words = ("--model", "base", "--data", "pairs.jsonl", "--objective", "preference")
    result = rankwise("plan", *words)
    assert result.exit_code == 0 and "12 pairs" in result.stdout, result.output
    counted = printed("data", "check", "pairs.jsonl", "--model", "base")
    settings = {"model": {"name": "base"}, "data": {"path": "pairs.jsonl"}, "objective": "preference"}
    made = plan(Planned(**settings))
    assert made.rows is not None and made.rows.documents.likely == counted["used"] == 12
    assert made.rows.tokens.likely == pytest.approx(counted["tokens"], rel=0.01)
    plain = plan(Planned(**settings, preference={"loss": "orpo"}))
    assert plain.duration is None or plain.duration.total.likely < made.duration.total.likely, "no reference is read"
