"""A schema belongs to the rows: it is inferred or given, rows that break it are named, and a run answers by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

import rankwise as library
from kit.command import done, printed, rankwise
from rankwise.config.data import Constraint
from rankwise.constraints.constraint import problem_with
from rankwise.runs.directory import find_run
from rankwise.runs.snapshot import RunSnapshot

SCHEMA = {
    "type": "object",
    "properties": {"land": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["big", "small"]}},
    "required": ["land", "kind"],
}  # fmt: skip
BY_FILE = ("--schema", "schema.json", "--max-new-tokens", "60")
BY_SCHEMA = Constraint(kind="schema", text=json.dumps(SCHEMA))


def row(number):
    kind = ("big", "small")[number % 2]
    return {"prompt": f"What is land {number}?", "completion": json.dumps({"land": number, "kind": kind})}


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    """A run that was trained by an inferred schema, and its rows."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(24)))
        (folder / "schema.json").write_text(json.dumps(SCHEMA))
        done(
            "train", "--model", tiny_folder, "--data", "rows.jsonl", "--schema", "infer", "--held-out", "4", "--steps",
            "4", "--batch-size", "2", "--rank", "2", "--run", "lands", "--set", "model.dtype=float32",
        )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _here(home, monkeypatch):
    monkeypatch.chdir(home)


def own():
    directory = find_run("lands")
    report = RunSnapshot.of(directory).recorded_data
    assert report.constraint is not None
    return report.constraint


def test_a_check_prints_the_schema_and_proposes_enumerations_that_bind_nobody():
    shown = done("data", "check", "rows.jsonl", "--schema", "infer").output
    assert '"required": ["land", "kind"]' in shown and "kind: big 12, small 12" in shown
    report = printed("data", "check", "rows.jsonl", "--schema", "infer")
    assert json.loads(report["constraint"]["text"])["properties"]["kind"] == {"type": "string"}
    assert report["enumerations"] == [{"path": "kind", "counts": {"big": 12, "small": 12}}]
    assert printed("data", "check", "rows.jsonl")["constraint"] is None


def test_rows_that_break_a_schema_are_named_with_their_line_and_path(tmp_path):
    rows = [row(number) for number in range(6)]
    rows[1]["completion"] = '{"land": 400, "kind": "big"}'
    rows[3]["completion"] = "a sentence"
    file = tmp_path / "broken.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    refused = rankwise("data", "check", file, "--schema", "schema.json")
    assert refused.exit_code == 2
    told = " ".join(refused.output.split())
    assert "broken.jsonl:2: the answer breaks the schema: land: 400 is greater than the maximum of 99" in told
    assert "broken.jsonl:4: the answer is not JSON: 'a sentence'" in told
    kept = printed("data", "check", file, "--schema", "schema.json", "--on-bad-row", "skip")
    assert (kept["used"], kept["skipped"]) == (4, 2)
    assert rankwise("data", "check", file, "--schema", "infer").exit_code == 2


def test_a_run_keeps_its_schema_and_answers_by_it_until_told_otherwise():
    assert json.loads(own().text)["required"] == ["land", "kind"]
    held = printed("generate", "lands", "--prompt", "What is land 3?", "--max-new-tokens", "60")
    free = printed("generate", "lands", "--prompt", "What is land 3?", "--max-new-tokens", "60", "--unconstrained")
    assert held["answer_stopped"] == "length" or problem_with(own(), held["answer"]) is None
    assert held["answer"].replace(" ", "").startswith('{"land":')
    assert not free["answer"].startswith("{")


@pytest.mark.parametrize(
    ("flags", "answers"),
    [(("--choices", "yes,no"), ("yes", "no")), (("--regex", "[ab]"), ("a", "b")), (("--grammar", "g.lark"), ("fox",))],
)
def test_a_command_may_hold_answers_to_something_else(home, flags, answers):
    (home / "g.lark").write_text('start: "fox"')
    assert printed("generate", "lands", "--prompt", "hi", "--max-new-tokens", "9", *flags)["answer"] in answers


def test_predict_evaluate_and_generate_write_the_same():
    """Byte for byte, with the schema of a file too."""
    done("predict", "lands", "--data", "rows.jsonl", "--out", "out.jsonl", *BY_FILE)
    predicted = [json.loads(line)["prediction"] for line in Path("out.jsonl").read_text().splitlines()]
    assert all(problem_with(BY_SCHEMA, one) is None for one in predicted) and len(predicted) == 24
    alone = [printed("generate", "lands", "--prompt", row(at)["prompt"], *BY_FILE)["answer"] for at in (0, 5)]
    assert alone == [predicted[0], predicted[5]]
    Path("t.yaml").write_text("task: lands\ndata: more.jsonl\nscore: [exact]\nmax_new_tokens: 60\n")
    Path("more.jsonl").write_text("".join(json.dumps(row(at)) + "\n" for at in range(30, 34)))
    done("predict", "lands", "--data", "more.jsonl", "--out", "more-out.jsonl", *BY_FILE)
    more = [json.loads(line)["prediction"] for line in Path("more-out.jsonl").read_text().splitlines()]
    done("evaluate", "lands", "--task", "t.yaml", "--schema", "schema.json", "--no-forgetting")
    written = json.loads(Path("runs/lands/evaluations/lands.json").read_text())
    for sample, text in zip(written["samples"], more, strict=True):
        shown = sample["tuned"].removesuffix(" \u2026")  # exact alone stops where it can no longer be right
        assert text.startswith(shown) and problem_with(BY_SCHEMA, text) is None
    assert written["settings"]["constraint"]["kind"] == "schema"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--schema", "none.json"), "none.json: cannot be read"),
        (("--schema", "rows.jsonl"), "the schema is not JSON"),
        (("--regex", "("), "no answer can be held to this regex"),
        (("--choices", "a,b", "--unconstrained"), "give one of them"),
    ],
)
def test_what_is_no_constraint_is_one_sentence(flags, reason):
    refused = rankwise("generate", "lands", "--prompt", "hi", *flags)
    assert refused.exit_code == 2 and reason in " ".join(refused.output.split())
    assert "Traceback" not in refused.output


def test_a_schema_that_was_edited_is_read_again(home, tiny_folder):
    kept = []
    for number, kind in enumerate(("object", "array")):
        (home / "edited.json").write_text(json.dumps({"type": kind}))
        trained = rankwise(
            "train", "--model", tiny_folder, "--data", "rows.jsonl", "--schema", "edited.json", "--held-out", "0",
            "--steps", "1", "--rank", "1", "--run", f"edited-{number}", "--set", "model.dtype=float32",
        )  # fmt: skip
        kept.append(trained.exit_code)
    assert kept == [0, 2]


def test_rows_without_answers_are_held_to_nothing(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a b c"}\n' * 3)
    refused = rankwise("data", "check", tmp_path / "texts.jsonl", "--choices", "a,b")
    assert refused.exit_code == 2 and "no row has an answer" in " ".join(refused.output.split())


def test_a_classifier_has_no_use_for_it(home, tiny_folder):
    rows = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(8)]
    (home / "classes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    refused = rankwise(
        "train", "--model", tiny_folder, "--data", "classes.jsonl", "--objective", "sequence-classification",
        "--schema", "infer", "--run", "classes",
    )  # fmt: skip
    assert refused.exit_code == 2 and "answer_schema" in refused.output


def test_python_takes_a_schema_or_a_class():
    class Land(BaseModel):
        land: bool

    run, short = library.load_run("lands"), {"max_new_tokens": 40}
    assert isinstance(json.loads(run.generate("What is land 3?", schema=Land, **short))["land"], bool)
    assert isinstance(json.loads(run.generate("What is land 3?", schema={"type": "boolean"}, **short)), bool)
    assert not run.generate("What is land 3?", constraint="none", **short).startswith("{")
