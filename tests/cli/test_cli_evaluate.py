"""`rankwise evaluate` on a run, its held-out rows, a task, and a model: one object with the keys that were promised."""

from __future__ import annotations

import contextlib
import csv
import json

import pytest

from kit.command import done, printed, rankwise
from rankwise.commands.evaluate import EvaluatedRows, asked_of
from rankwise.evaluation.subject import open_subject
from rankwise.runs.records import silent

ROWS = [{"prompt": f"What is land {n}?", "completion": f"It is town {n % 3}."} for n in range(12)]

OTHERS = [{"prompt": f"What is land {n}?", "completion": f"It is town {n % 3}."} for n in range(20, 32)]


def found(*words):
    return printed(*words)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("evaluating")
    with contextlib.chdir(folder):
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OTHERS))
        words = ("--model", tiny_folder, "--data", "rows.jsonl", "--steps", 30, "--learning-rate", 0.02)
        for run, more in (("measured", ("--held-out", 4)), ("all", ())):
            done("train", *words, "--run", run, *more)
        yield folder


def test_a_run_is_held_against_its_base_on_what_it_held_out(home):
    told = found("evaluate", "measured")
    assert (told["task"], told["n"], told["model"]) == ("held-out", 4, "measured")
    manifest = json.loads((home / "runs/measured/manifest.json").read_text())["results"]
    assert told["metrics"]["loss"]["value"] == pytest.approx(manifest["validation_loss_after"], rel=0.02)
    assert told["base"]["loss"]["value"] == pytest.approx(manifest["validation_loss_before"], rel=0.02)
    assert (home / "runs/measured/evaluations/held-out.json").exists()
    assert "held-out" in (home / "runs/measured/report.html").read_text()
    kept = told["forgetting"]
    assert {"kl", "delta_nll", "low", "high"} <= set(kept)
    assert 0 < kept["low"] <= kept["kl"] <= kept["high"]


def test_queries_that_a_run_held_out_are_run_on_the_tables_of_their_rows(home, tiny_folder):
    tables = "CREATE TABLE land (name TEXT); INSERT INTO land VALUES "
    rows = [{"prompt": f"Which is land {n}?", "completion": "SELECT name FROM land", "tables": f"{tables} ('{n}');"}
            for n in range(12)]  # fmt: skip
    (home / "sql.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done("train", "--model", tiny_folder, "--data", "sql.jsonl", "--steps", 60, "--learning-rate", 0.02, "--held-out",
         4, "--run", "queries", "--set", "data.accept=one-answer")  # fmt: skip
    told = rankwise("evaluate", "queries", "--no-forgetting")
    assert "held-out is also scored by sql, because every row has a database" in told.output
    measured = found("evaluate", "queries", "--no-forgetting")["metrics"]
    assert list(measured) == ["loss", "sql"] and measured["sql"]["value"] == 1


def test_the_promised_keys(home):
    (home / "task.yaml").write_text("task: lands\ndata: others.jsonl\nscore: [loss, exact]\nmax_new_tokens: 8\n")
    told = found("evaluate", "measured", "--task", "task.yaml")
    assert {"task", "n", "metrics", "forgetting"} <= set(told)
    for measured in told["metrics"].values():
        assert set(measured) == {"value", "low", "high"}
        assert measured["low"] <= measured["value"] <= measured["high"]
    assert told["differences"]["loss"]["verdict"] == "better"
    assert told["n"] == len(OTHERS)
    assert "better" in rankwise("evaluate", "measured", "--task", "task.yaml").stdout


def test_runs_of_one_base_ask_it_once(home):
    (home / "shared.yaml").write_text("task: shared\ndata: others.jsonl\nscore: [loss, exact]\nmax_new_tokens: 6\n")
    results = [rankwise("evaluate", run, "--task", "shared.yaml", "--json") for run in ("measured", "all")]
    first, second = (json.loads(result.stdout)["base"] for result in results)
    assert second == first
    assert ["taken from the cache" in result.stderr for result in results] == [False, True]


def test_a_model_beside_itself_forgets_nothing(home, tiny_folder):
    told = found("evaluate", tiny_folder, "--against", tiny_folder, "--task", "rows.jsonl")
    assert (told["forgetting"]["kl"], told["forgetting"]["delta_nll"]) == (0, 0)
    assert told["differences"]["loss"]["verdict"] == "cannot tell"
    assert found("evaluate", tiny_folder, "--task", "rows.jsonl")["forgetting"] is None


@pytest.fixture(scope="module")
def columns(home, tiny_folder):
    """A run by columns of its own, and other rows with and without them."""
    for name, rows in {"own": ROWS, "like": OTHERS}.items():
        texts = ({"text": row["prompt"], "fields": row["completion"]} for row in rows)
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    texts = ("--prompt", "Extract: {text}", "--completion", "{fields}")
    words = ("--model", tiny_folder, "--data", "own.jsonl", "--run", "extract", "--steps", 2, *texts)
    done("train", *words)


@pytest.mark.usefixtures("columns")
def test_a_file_of_rows_is_read_by_the_run_s_own_columns_whatever_names_it(home):
    by_data = found("evaluate", "extract", "--data", "like.jsonl", "--no-forgetting")
    by_task = found("evaluate", "extract", "--task", "like.jsonl", "--no-forgetting")
    (home / "likes.yaml").write_text("data: like.jsonl\nscore: [loss, exact]\nmax_new_tokens: 4\n")
    by_file = found("evaluate", "extract", "--task", "likes.yaml", "--no-forgetting")
    assert by_data["task"] == by_task["task"] == "like"
    assert by_task["metrics"] == by_data["metrics"]
    assert by_file["metrics"]["loss"]["value"] == pytest.approx(by_data["metrics"]["loss"]["value"], rel=1e-4)
    stored = json.loads((home / "runs/extract/evaluations/likes.json").read_text())
    assert stored["samples"][0]["prompt"].count("Extract: What is land 20?") == 1
    (home / "asked.yaml").write_text("data: like.jsonl\nprompt: '{text}'\ncompletion: '{fields}'\n")
    assert found("evaluate", "extract", "--task", "asked.yaml", "--no-forgetting")["metrics"] != by_data["metrics"]


@pytest.mark.usefixtures("columns")
def test_rows_of_a_known_format_without_the_run_s_columns_are_read_as_such_and_it_is_said():
    results = [rankwise("evaluate", "extract", *words, "--no-forgetting", "--json")
               for words in (("--data", "others.jsonl"), ("--task", "others.jsonl"))]  # fmt: skip
    for result in results:
        assert "has none of the columns that the prompt of the run names (fields, text)" in result.stderr
    first, second = (json.loads(result.stdout) for result in results)
    assert first["metrics"] == second["metrics"] and first["n"] == len(OTHERS)


def test_what_is_printed_steers_no_terminal_and_claims_no_more_than_is_known(home, tiny_folder):
    (home / "steering\x1b[2J.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = rankwise("evaluate", tiny_folder, "--task", "steering\x1b[2J.jsonl", "--quiet")
    assert result.exit_code == 0 and "\x1b" not in result.stdout and "\\x1b[2J" in result.stdout
    told = rankwise("evaluate", "measured", "--quiet").stdout
    assert "KL(base || tuned)" in told and "never trained" not in told
    assert "4 items cannot show anything" in told and "chose the step" not in told


def test_rows_that_chose_the_step_are_said_to_flatter(home, tiny_folder):
    words = ("--model", tiny_folder, "--data", "rows.jsonl", "--steps", 4, "--held-out", 4, "--keep", "best")
    assert rankwise("train", *words, "--run", "best").exit_code == 0
    assert "chose the step that was kept" in rankwise("evaluate", "best", "--no-forgetting", "--quiet").stdout


def test_a_text_of_ones_own_and_none(home):
    (home / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 2000)
    told = found("evaluate", "measured", "--text", "text.txt")
    assert told["forgetting"]["text"].startswith("text.txt: 32 blocks")
    (home / "runs/measured/evaluations/held-out.json").unlink()
    assert found("evaluate", "measured", "--no-forgetting")["forgetting"] is None


def test_what_was_measured_stays_where_it_is_not_measured_again(home):
    before = found("evaluate", "measured")
    file = home / "runs/measured/evaluations/held-out.json"
    stored = json.loads(file.read_text())
    stored["forgetting"]["created"] = before["forgetting"]["created"] = "2020-02-02T00:00:00+00:00"
    file.write_text(json.dumps(stored))
    again = found("evaluate", "measured", "--no-forgetting", "--no-base")
    assert again["base"] is None
    assert again["forgetting"] == before["forgetting"]


@pytest.mark.parametrize("setting", ["fingerprint", "dtype"])
def test_what_other_weights_or_numbers_forgot_is_not_taken_over(home, setting):
    found("evaluate", "measured")
    file = home / "runs/measured/evaluations/held-out.json"
    stored = json.loads(file.read_text())
    stored["settings"][setting] = "another"
    file.write_text(json.dumps(stored))
    assert found("evaluate", "measured", "--no-forgetting")["forgetting"] is None


def test_what_was_kept_names_the_base_and_how_both_were_held(home, tiny_folder):
    own = json.loads((home / "runs/measured/manifest.json").read_text())["base_model"]["fingerprint"]
    kept = found("evaluate", "measured")["forgetting"]
    assert (kept["base"], kept["dtype"]) == (own, "float32") and kept["created"]
    beside = found("evaluate", tiny_folder, "--against", tiny_folder, "--task", "rows.jsonl", "--dtype", "bfloat16")
    assert (beside["forgetting"]["base"], beside["forgetting"]["dtype"]) == (own, "bfloat16")
    told = found("evaluate", "measured", "--force-base")["forgetting"]
    assert told["base"] == own


def test_an_evaluation_that_is_replaced_by_one_of_other_items_is_named(home):
    found("evaluate", "measured", "--data", "others.jsonl", "--no-forgetting")
    told = rankwise("evaluate", "measured", "--data", "others.jsonl", "--no-forgetting")
    assert "is replaced" not in told.output
    told = rankwise("evaluate", "measured", "--data", "others.jsonl", "--no-forgetting", "--rows", 5)
    assert "is replaced; it contained 12 other items of others.jsonl" in " ".join(told.output.split())


@pytest.mark.parametrize("words", [("--task", "rows.jsonl"), ("--data", "rows.jsonl"), ("--task", "learned.yaml")])
def test_the_rows_that_a_run_was_trained_on_say_nothing(home, words):
    (home / "learned.yaml").write_text("task: lands\ndata: rows.jsonl\nscore: exact\n")
    for run in ("measured", "all"):
        result = rankwise("evaluate", run, *words)
        assert result.exit_code == 2, result.output
        assert "rows.jsonl: belongs to the data of the run" in " ".join(result.output.split())


def test_rows_to_measure_with_that_are_those_of_training_are_told_or_refused(home, tiny_folder):
    """As --data they were taken without a word, and as --task refused."""
    words = ("--model", tiny_folder, "--data", "rows.jsonl", "--validation-data", "rows.jsonl", "--steps", 1)
    assert rankwise("train", *words, "--run", "both").exit_code == 0
    for named in ("--data", "--task"):
        result = rankwise("evaluate", "both", named, "rows.jsonl", "--no-forgetting")
        assert result.exit_code == 2, result.output
        assert "rows.jsonl: belongs to the data of the run" in " ".join(result.output.split())
    told = rankwise("evaluate", "both", "--no-forgetting", "--quiet").stdout
    assert "12 of the 12 validation rows have the same prompt as a training row" in " ".join(told.split())


def test_a_run_is_asked_with_its_own_system_message(home, tiny_folder):
    done("train", "--model", tiny_folder, "--data", "rows.jsonl", "--steps", 1, "--run", "spoken",
                      "--set", "data.system=quick fox", "--set", "data.validation=others.jsonl")  # fmt: skip
    (home / "asked.yaml").write_text("task: asked\ndata: others.jsonl\nscore: exact\nmax_new_tokens: 4\n")
    found("evaluate", "spoken", "--task", "asked.yaml", "--no-forgetting")
    stored = json.loads((home / "runs/spoken/evaluations/asked.json").read_text())
    assert stored["settings"]["system"] == "quick fox"
    subject = open_subject("spoken")
    task = asked_of(subject, "asked.yaml", EvaluatedRows(None, None), 4, silent)
    assert all(
        "system\nquick fox" in subject.model.tokenizer.decode(item.prompt_ids) for item in task.requests.requests
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("measured", "--text", "t.txt", "--no-forgetting"), "needs two models to compare"),
        (("no/such-model", "--text", "t.txt"), "needs two models to compare"),  # before a model is looked for
        (("measured", "--task", "lm-eval:piqa", "--data", "rows.jsonl"), "has its own data"),
        (("all",), "has no validation rows"),
        (("measured", "--task", "nothing"), "there is no task"),
        (("measured", "--against", "x"), "its own base"),
        (("measured", "--task", "missing.yaml"), "missing.yaml"),
        (("nowhere", "--task", "rows.jsonl"), "nowhere"),
        (("measured", "--task", "others.jsonl", "--dtype", "float8"), "float8"),
    ],
)
def test_mistakes_are_told_and_exit_with_two(home, words, problem):
    result = rankwise("evaluate", *words)
    assert result.exit_code == 2, result.output
    assert problem in " ".join(result.output.split()) and "Traceback" not in result.output


@pytest.mark.parametrize("out", ["rows.jsonl", "runs", "rows.jsonl/x.json", "", "rows.jsonl/deep/x.json"])
def test_a_place_that_cannot_take_the_result_is_told_before_anything_is_measured(home, tiny_folder, monkeypatch, out):
    monkeypatch.setattr("rankwise.evaluation.task.OwnTask.score", lambda *_: pytest.fail("it was measured"))
    before = (home / "rows.jsonl").read_bytes()
    result = rankwise("evaluate", tiny_folder, "--task", "others.jsonl", "--out", out, "--no-forgetting", "--json")
    assert result.exit_code == 2, result.output
    assert json.loads(result.stdout)["kind"] == "RunError"
    assert (home / "rows.jsonl").read_bytes() == before


def test_a_result_is_written_over_an_earlier_one_alone(home, tiny_folder):
    words = ("evaluate", tiny_folder, "--task", "others.jsonl", "--out", "deep/mine.json", "--no-forgetting")
    assert found(*words) and found(*words)
    assert json.loads((home / "deep/mine.json").read_text())["task"] == "others"


def test_scores_are_named_for_a_file_and_for_the_rows_that_were_held_out(home):
    told = found("evaluate", "all", "--data", "others.jsonl", "--score", "exact,rouge_l", "--no-forgetting")
    assert list(told["metrics"]) == ["exact", "rouge_l"] and told["n"] == 12 and told["task"] == "others"
    told = found("evaluate", "measured", "--score", "rouge_l", "--no-forgetting")
    assert list(told["metrics"]) == ["rouge_l"] and told["task"] == "held-out"
    told = found("evaluate", "all", "--data", "others.jsonl", "--score", "accuracy", "--no-forgetting")
    assert told["labels"] == {"It is town 2.": 4, "It is town 0.": 4, "It is town 1.": 4}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_of_every_answer_has_the_columns_of_the_row_its_reference_and_own_scores(home, suffix):
    words = ("evaluate", "all", "--data", "others.jsonl", "--score", "exact,rouge_l", "--no-forgetting")
    told = found(*words, "--out", f"every.{suffix}")
    text = (home / f"every.{suffix}").read_text()
    rows = list(csv.DictReader(text.splitlines())) if suffix == "csv" else list(map(json.loads, text.splitlines()))
    assert list(rows[0]) == [*OTHERS[0], "reference", "prediction", "base_prediction", "exact", "rouge_l"]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in OTHERS]
    for name in ("exact", "rouge_l"):
        assert sum(float(row[name]) for row in rows) / 12 == pytest.approx(told["metrics"][name]["value"])
    assert all((row["prediction"] == row["reference"]) == bool(float(row["exact"])) for row in rows)
    assert (home / "runs/all/evaluations/others.json").exists(), "the result goes where it always goes"
    assert "already exists" in rankwise(*words, "--out", f"every.{suffix}").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--score", "exactly,rogue_l"), ('no score "exactly"', 'Did you mean "exact"?', 'no score "rogue_l"')),
        (("--score", "accuracy"), ("a score of choices needs the rows of a file",)),
        (("--data", "others.jsonl", "--score", "exact,accuracy"), ("make two tasks of it",)),
        (("--data", "others.jsonl", "--score", "number,json"), ("others.jsonl:1: the reference answer",)),
        (("--data", "others.jsonl", "--out", "answers.xls"), ("answers.xls",)),
    ],
)
def test_scores_that_do_not_fit_are_refused_in_a_sentence(home, words, said):
    result = rankwise("evaluate", "measured", *words, "--no-forgetting")
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2 and all(one in told for one in said), told


def test_rows_of_training_are_noticed_in_another_file_too(home):
    text = "\n".join(
        ["id;prompt;completion", *(f"7{n};{row['prompt']} ;{row['completion']}" for n, row in enumerate(ROWS[:5]))]
    )
    (home / "again.csv").write_text(text + "\n80;What is land 99?;It is town 0.\n", encoding="cp1252")
    result = done("evaluate", "all", "--data", "again.csv", "--score", "exact", "--no-forgetting", "--no-base")
    assert "5 of the 6 rows are in the files that the run was trained on" in " ".join(result.output.split())
    result = done("evaluate", "all", "--data", "others.jsonl", "--score", "exact", "--no-forgetting", "--no-base")
    assert "trained on" not in result.output


def test_answers_that_are_asked_for_are_whole_and_columns_of_the_same_name_stay(home):
    rows = [row | {"prediction": "mine", "exact": "mine"} for row in OTHERS]
    (home / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done("evaluate", "all", "--data", "named.jsonl", "--score", "exact", "--no-forgetting", "--out", "named-out.jsonl")
    table = list(map(json.loads, (home / "named-out.jsonl").read_text().splitlines()))
    assert all(row["prediction"] == row["exact"] == "mine" and row["rankwise_exact"] in (0, 1) for row in table)
    answers = [row[name] for row in table for name in ("rankwise_prediction", "base_prediction")]
    assert not any(answer.endswith(" …") for answer in answers)
