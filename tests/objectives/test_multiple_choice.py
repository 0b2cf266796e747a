"""Multiple choice: loss and prediction are those of transformers, in any batch, and a run says what it learned."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.command import rankwise
from kit.interrupted import whole_and_resumed
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.objectives.objective import Facts, Objective
from rankwise.objectives.registry import objective_named, read_places
from rankwise.python.run import load_run
from rankwise.rows.forms.formats import Choices, parse_row
from rankwise.rows.preparing import prepare
from rankwise.runs.records import silent
from rankwise.runs.snapshot import RunSnapshot

QUESTION = {"question": "What is red?", "choices": ["a rose", "the sky", "grass in May"], "answer": 0}
TRAINING = (
    "--steps",
    "12",
    "--batch-size",
    "4",
    "--learning-rate",
    "0.01",
    "--rank",
    "4",
    "--set",
    "model.dtype=float32",
)


def questions(count: int) -> list[dict[str, Any]]:
    """Of two to four choices, with answers by number and by text."""
    random, rows = np.random.default_rng(0), []
    for at in range(count):
        a, b = random.integers(1, 40, 2).tolist()
        choices = [str(a + b + shift) for shift in random.permutation(2 + at % 3).tolist()]
        rows.append({
            "question": f"What is {a} plus {b}?", "choices": choices,
            "answer": choices.index(str(a + b)) if at % 2 else str(a + b),
        })  # fmt: skip
    return rows


def write(rows: list[dict[str, Any]], path: Path | str = "rows.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(run: str, model: Path, *more: str) -> Any:
    result = rankwise(
        "train", "--model", str(model), "--data", "rows.jsonl", "--objective", "multiple-choice", "--held-out", "9",
        "--run", run, *TRAINING, *more,
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(questions(40))
    return tmp_path


def loaded_rows(folder: Path) -> tuple[Objective, Any, Any]:
    data = DataConfig(path="rows.jsonl", held_out=0)
    objective = objective_named("multiple-choice", Facts(read_places(data)))
    model = load(ModelConfig(name=str(folder), dtype="float32"), silent, objective.kind)
    return objective, model, prepare(data, objective.rows.encoding(model), silent).trained_rows


def scores_of(row: dict[str, Any], folder: Path) -> list[float]:
    """Of each choice: the log-probability of its tokens and of the token that ends it, without any code of rankwise."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
    begin = len(tokenizer.encode(prompt, add_special_tokens=False))
    scores = []
    for choice in row["choices"]:
        ids = tokenizer.encode(f"{prompt}{choice}<|im_end|>", add_special_tokens=False)
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores.append(float(sum(logs[at - 1, ids[at]] for at in range(begin, len(ids)))))
    return scores


def right(row: dict[str, Any]) -> int:
    return row["answer"] if isinstance(row["answer"], int) else row["choices"].index(row["answer"])


def test_the_loss_is_that_of_transformers_and_no_batch_changes_it(home, tiny_folder):
    objective, model, rows = loaded_rows(tiny_folder)
    wanted = sum(-float(torch.tensor(scores_of(row, tiny_folder)).log_softmax(0)[right(row)]) for row in questions(40))
    for most in (1, 300, 100_000):
        batches = objective.loss.batches(list(rows), most)
        assert sum(batch.count for batch in batches) == 40
        assert all(batch.count == 1 or batch.size <= most for batch in batches), most
        with torch.no_grad():
            total = sum(objective.loss(model.module, batch).item() for batch in batches)
        assert total == pytest.approx(wanted, rel=1e-5), most
    assert len(objective.loss.batches(list(rows), 1)) == 40


def test_the_gradient_is_that_of_the_formula_also_where_rows_have_fewer_choices(home, tiny_folder):
    objective, model, rows = loaded_rows(tiny_folder)
    batches = [objective.loss.batches(list(rows), most) for most in (1, 100_000)]
    gradients = []
    for parts in batches:
        model.module.zero_grad()
        for batch in parts:
            objective.loss(model.module, batch).backward()
        gradients.append([one.grad.clone() for one in model.module.parameters()])
    for alone, together in zip(*gradients, strict=True):
        assert torch.isfinite(alone).all()
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4)


def test_what_is_predicted_is_the_choice_with_the_highest_score(home, tiny_folder):
    trained("r", tiny_folder, "--steps", "1", "--learning-rate", "1e-6")
    rows = questions(7)
    bare = [{"question": row["question"], "choices": row["choices"]} for row in rows]
    result = rankwise("predict", "r", "--data", write(bare, "bare.jsonl"), "--out", "out.jsonl")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for row, line in zip(rows, lines, strict=True):
        scores = torch.tensor(scores_of(row, tiny_folder))
        best = int(scores.argmax())
        assert (line["prediction"], line["prediction_number"]) == (row["choices"][best], best)
        assert line["prediction_probabilities"] == pytest.approx(scores.softmax(0).tolist(), abs=1e-4)
    (first, *_) = load_run("r").predict(bare)
    assert first["label"] == lines[0]["prediction"] and list(first["probabilities"]) == rows[0]["choices"]
    assert rankwise("predict", "r", "--data", write(rows, "own.jsonl"), "--out", "out.csv").exit_code == 0
    with Path("out.csv").open() as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [line["prediction"] for line in lines]


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_run_that_is_resumed_ends_with_the_same_bytes(method, home, tiny_folder):
    adapter = {"method": "adalora", "budget": 2} if method == "adalora" else {"rank": 2, "dropout": 0.2}

    def experiment(run: str) -> Experiment:
        return Experiment(
            model={"name": str(tiny_folder), "dtype": "float32"}, run=run, objective="multiple-choice",
            data={"path": "rows.jsonl", "held_out": 8}, adapter=adapter,
            training={"steps": 10, "batch_size": 4, "learning_rate": 5e-3, "checkpoint_steps": 3},
        )  # fmt: skip

    whole, part = whole_and_resumed(experiment, 7)
    assert whole == part


def test_a_run_learns_by_heart_and_says_how_often_it_is_right(home, tiny_folder):
    write(questions(9) * 4)
    trained("r", tiny_folder, "--steps", "60", "--group", "question", "--set", "data.accept=[]")
    results = RunSnapshot.finished("r").manifest.results
    assert results.validation_accuracy_after is not None
    report = RunSnapshot.finished("r").recorded_data
    assert (
        report.targets.classes == ("choice 0", "choice 1", "choice 2", "choice 3") and sum(report.targets.counts) == 36
    )
    assert "choice 0 (" in report.targets.describe() and report.template is not None
    result = rankwise("evaluate", "r", "--no-forgetting", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and found["base"] is not None
    assert "accuracy" in (Path("runs") / "r" / "adapter" / "README.md").read_text()
    assert "What is" in (Path("runs") / "r" / "report.html").read_text()


BAD = {
    "one choice": ({"choices": ["a rose"]}, "x:1: from 2 to 100 choices are expected, and the number here is 1."),
    "no list": ({"choices": {"a": 1}}, "x:1: the choices are {'a': 1}; a list of texts is expected."),
    "a doubled choice": (
        {"choices": ["a rose", "the sky", " a rose"]}, "x:1: the choice 'a rose' is there 2 times; name it once.",
    ),
    "an empty choice": ({"choices": ["a rose", " "]}, "x:1: the choice 1 is empty."),
    "a number as a choice": ({"choices": ["a rose", 7]}, "x:1: the choice 1 is 7; text is expected."),
    "an answer out of range": ({"answer": 3}, "x:1: the answer is 3, which is none of the 3 choices"),
    "a negative answer": ({"answer": -1}, "x:1: the answer is -1, which is none of the 3 choices"),
    "another text": ({"answer": "mud"}, "x:1: the answer is 'mud', which is none of the 3 choices"),
    "true": ({"answer": True}, "x:1: the answer is true, which is none of the 3 choices"),
    "an empty question": ({"question": ""}, "x:1: the question is empty."),
    "a history": ({"history": [["a", "b"]]}, "x:1: the row has 'history', which is not supported."),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_one_sentence(name):
    changes, sentence = BAD[name]
    with pytest.raises(DataError) as caught:
        parse_row(QUESTION | changes, "multiple-choice", "x:1")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(("answer", "number"), [(2, 2), ("2", 2), ("the sky", 1), (" the sky ", 1), (None, None)])
def test_an_answer_is_a_number_or_a_text(answer, number):
    (example,) = parse_row(QUESTION | {"answer": answer}, "multiple-choice", "x:1")
    assert isinstance(example, Choices) and example.answer == number
    assert example.question.answer is None and len(example.conversations) == 3


def test_a_text_comes_before_a_number():
    (example,) = parse_row({"question": "1 + 1?", "choices": ["3", "2", "1"], "answer": "2"}, "multiple-choice", "x:1")
    assert isinstance(example, Choices) and example.answer == 1


def test_rows_contradict_each_other_where_question_and_choices_are_the_same(home, tiny_folder):
    which = {"question": "Which is the best?", "answer": 0}
    others = [which | {"choices": [f"a {at}", f"b {at}"]} for at in range(4)]
    same = [QUESTION, QUESTION | {"choices": QUESTION["choices"][::-1], "answer": 1}]
    write([*others, *same])
    check = ("data", "check", "rows.jsonl", "--model", str(tiny_folder), "--objective", "multiple-choice")
    said = rankwise(*check).output
    assert "another label: 2 of 6, such as rows.jsonl:5 and rows.jsonl:6" in said


def test_all_bad_rows_are_named_with_their_lines_or_left_out(home, tiny_folder):
    write([*questions(12), QUESTION | {"answer": 9}, {"question": "No answer?", "choices": ["a", "b"]}])
    check = ("data", "check", "rows.jsonl", "--model", str(tiny_folder), "--objective", "multiple-choice")
    result = rankwise(*check)
    assert result.exit_code == 2 and "rows.jsonl:13: the answer is 9" in result.output
    result = rankwise(*check, "--on-bad-row", "skip")
    assert result.exit_code == 0, result.output
    assert "rows.jsonl:14: has no answer" in result.output and "choice 0 (" in result.output


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--objective", "causal-lm"), "rows.jsonl: holds questions with choices. Add --objective multiple-choice"),
        (("--objective", "multiple-choice", "--backend", "fused"), "the fused kernels do not compare the choices"),
        (("--objective", "multiple-choice", "--set", "data.too_long=truncate"), "data.too_long truncate has no effect"),
    ],
)
def test_what_is_not_possible_is_refused(more, sentence, home, tiny_folder):
    result = rankwise("train", "--model", str(tiny_folder), "--data", "rows.jsonl", "--run", "r", *TRAINING, *more)
    assert result.exit_code == 2 and sentence in " ".join(result.output.split()), result.output


def test_a_row_of_another_form_and_one_with_more_choices_are_refused(home, tiny_folder):
    write([{"prompt": "a", "completion": "b"}] * 4)
    result = rankwise(
        "train", "--model", str(tiny_folder), "--data", "rows.jsonl", "--run", "r", "--objective", "multiple-choice"
    )
    assert result.exit_code == 2 and "no row has a question with choices" in result.output
    write(questions(12))
    trained("r", tiny_folder, "--steps", "1")
    more = [{"question": "Which?", "choices": ["a", "b", "c", "d", "e"], "answer": 0}]
    result = rankwise("evaluate", "r", "--data", write(more, "more.jsonl"), "--no-forgetting")
    assert result.exit_code == 2 and "more.jsonl:1: has 5 choices, and rows of training at most 4" in result.output


def test_a_plan_and_a_preview_show_every_choice(home, tiny_folder):
    result = rankwise(
        "plan", "--model", str(tiny_folder), "--data", "rows.jsonl", "--objective", "multiple-choice", "--json"
    )
    assert result.exit_code == 0, result.output
    result = rankwise(
        "data", "preview", "rows.jsonl", "--model", str(tiny_folder), "--objective", "multiple-choice", "--rows", "1",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)["rows"]
    assert [row["where"] for row in shown] == ["rows.jsonl:1 choice 0, the right one", "rows.jsonl:1 choice 1"]
