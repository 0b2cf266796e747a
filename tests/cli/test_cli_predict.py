"""`rankwise predict`: each row gets the answer that `generate` gives to it, read as the run's rows were; no column is
lost, nor the order; and what cannot be answered is told before anything is written."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import pytest

import rankwise as library
from kit.command import done, printed, rankwise
from rankwise.commands import predict as verb
from rankwise.config.data import DataConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import DataError
from rankwise.inference.tuned_model import load_tuned
from rankwise.rows.asking import question_of
from rankwise.rows.sources import open_source, raw_records

SHORT = ("--max-new-tokens", "6")
LANDS = [f"What is the capital of land {number}?" + " Tell me." * (number % 3) for number in range(5)]


def predicted(run, rows, *words, out="out.jsonl", name="rows.jsonl"):
    """The rows that a command wrote, and what it printed with --json."""
    write(name, rows)
    told = printed("predict", run, "--data", name, "--out", out, *SHORT, "--overwrite", *words)
    return read(out), told


def refused(*words, code=2):
    result = rankwise("predict", *words, *SHORT)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and not Path("new.jsonl").exists()
    return result.stderr


def write(name, rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(name).write_text("".join(line + "\n" for line in lines))


def read(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def generated(run, prompt, **given):
    return library.generate(run, prompt, GenerationConfig(max_new_tokens=6), **given).adapted.text


ROWS_OF = {
    "plain": [{"prompt": land, "completion": "the quick"} for land in LANDS],
    "mapped": [{"frage": land, "sql": "the quick"} for land in LANDS],
    "texts": [{"land": land, "mood": "brown", "sql": "the quick"} for land in LANDS],
    "classes": [{"text": land, "label": number % 2} for number, land in enumerate(LANDS)],
    "polite": [{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": land},
                             {"role": "assistant", "content": "the quick"}]} for land in LANDS],
    "prose": [{"text": land} for land in LANDS],
    "ignoring": [{"prompt": land, "context": "lazy dog", "completion": "the quick"} for land in LANDS],
}  # fmt: skip
WORDS = {
    "mapped": ("--set", "data.columns={prompt: frage, completion: sql}"),
    "texts": ("--prompt", "{mood}: {land}", "--completion", "{sql}", "--system", "Be {mood}."),
    "classes": ("--set", "data.labels=[dog, fox]"),
    "ignoring": ("--ignore-columns", "context"),
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory, tiny_folder):
    with contextlib.chdir(tmp_path_factory.mktemp("predicting")):
        for run, rows in ROWS_OF.items():
            write(f"{run}-train.jsonl", rows)
            words = ("--model", tiny_folder, "--data", f"{run}-train.jsonl", "--run", run, "--steps", 2, "--rank", 2)
            done("train", *words, "--learning-rate", 0.02, "--set", "model.dtype=float32", *WORDS.get(run, ()))
        yield


@pytest.fixture(scope="module")
def answers(home):
    """What `generate` says to each land."""
    asked = load_tuned("plain")
    found = [generated(asked, land) for land in LANDS]
    assert len(set(found)) > 1, "one answer for all would show no order"
    return found


def test_each_row_gets_the_answer_of_generate_in_its_place_and_keeps_its_columns(answers):
    rows = [{"id": number, "prompt": land, "tags": ["a", {"b": None}]} for number, land in enumerate(LANDS)]
    found, told = predicted("plain", rows)
    assert found == [row | {"prediction": answer} for row, answer in zip(rows, answers, strict=True)]
    assert list(found[0]) == ["id", "prompt", "tags", "prediction"]
    assert told["rows"] == told["answered"] == 5 and told["errors"] == [] and told["out"] == "out.jsonl"
    assert 0 < told["tokens"] <= 30 and sum(told["stopped"].values()) == 5 and told["repeated"] == []


@pytest.mark.parametrize("words", [("--batch-size", 1), ("--batch-size", 2), ("--column", "said")])
def test_neither_company_nor_the_name_of_the_column_changes_an_answer(answers, words):
    found, _ = predicted("plain", [{"prompt": land} for land in LANDS], *words)
    assert [row[words[1] if words[0] == "--column" else "prediction"] for row in found] == answers


def test_an_answer_that_a_row_brings_is_kept_and_not_looked_at(answers):
    rows = [
        {"prompt": land, "completion": done} for land, done in zip(LANDS, ["", "x", None, " ", "x " * 3], strict=True)
    ]
    found, _ = predicted("plain", rows)
    assert found == [row | {"prediction": answer} for row, answer in zip(rows, answers, strict=True)]


def test_a_column_that_training_ignored_is_no_part_of_the_prompt():
    given = [{"prompt": land, "context": "the lazy dog jumps over the quick brown fox"} for land in LANDS]
    rows, _ = predicted("ignoring", given)
    assert [row["prediction"] for row in rows] == [generated("ignoring", land) for land in LANDS]
    assert [row["context"] for row in rows] == [row["context"] for row in given]


def test_base_answers_by_the_base():
    found, _ = predicted("plain", [{"prompt": LANDS[0]}], "--base")
    base = library.generate("plain", LANDS[0], GenerationConfig(max_new_tokens=6), base=True).base
    assert found[0]["prediction"] == base.text


LAND = LANDS[1]
ASKED = {
    "columns by other names": ("mapped", {"frage": LAND}, (LAND, {})),
    "columns put into texts": ("texts", {"land": LAND, "mood": "fox"}, (f"fox: {LAND}", {"system": "Be fox."})),
    "a label to come": ("classes", {"text": LAND}, (LAND, {})),
    "a label and a pair": ("classes", {"text": LAND, "text_pair": "dog", "label": 1}, (LAND, {"context": "dog"})),
    "a conversation that waits": ("polite", {"messages": [{"role": "user", "content": LAND}]}, (LAND, {})),
    "one that was answered": ("polite", ROWS_OF["polite"][1], (LAND, {})),
    "one of ShareGPT": ("plain", {"conversations": [{"from": "human", "value": LAND}]}, (LAND, {})),
    "one as a table has it": ("plain", {"messages": json.dumps([{"role": "user", "content": LAND}])}, (LAND, {})),
    "an instruction": ("plain", {"instruction": LAND, "input": "dog"}, (LAND, {"context": "dog"})),
    "its own system message": ("polite", {"prompt": LAND, "system": "the fox"}, (LAND, {"system": "the fox"})),
    "the run's system message": ("polite", {"prompt": LAND}, (LAND, {"system": "Be brief."})),
    "turns as a prompt": ("plain", {"prompt": [{"role": "user", "content": LAND}]}, (LAND, {})),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_row_without_an_answer_asks_what_it_would_ask_in_training(what):
    run, row, (prompt, given) = ASKED[what]
    found, _ = predicted(run, [row])
    assert found == [row | {"prediction": generated(run, prompt, **given)}]


def test_what_to_ask_can_be_said_whatever_the_columns(answers):
    found, _ = predicted("mapped", [{"land": land} for land in LANDS[:2]], "--prompt", "{land}", "--system", "the fox")
    assert [row["prediction"] for row in found] == [generated("mapped", land, system="the fox") for land in LANDS[:2]]
    prose, _ = predicted("prose", ROWS_OF["prose"], "--prompt", "{text}")
    assert len(prose) == 5


def test_tables_go_in_and_out():
    with open("rows.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["id", "prompt"], *([number, f'{land} "x",\ny'] for number, land in enumerate(LANDS))])
    done("predict", "plain", "--data", "rows.csv", "--out", "out.csv", *SHORT)
    with open("out.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["prompt"] for row in found] == [f'{land} "x",\ny' for land in LANDS]
    assert [row["prediction"] for row in found] == [generated("plain", row["prompt"]) for row in found]
    nested, _ = predicted("plain", [{"prompt": LAND, "a": [1, {"b": 2}]}, {"prompt": LAND, "c": None}], out="out.jsonl")
    write("nested.jsonl", nested)
    rankwise("predict", "plain", "--data", "rows.jsonl", "--out", "out2.csv", *SHORT)
    with open("out2.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["a"]) == [1, {"b": 2}] and second["a"] == second["c"] == first["c"] == ""


def test_a_column_that_the_prompt_lacks_is_told_by_those_of_the_file():
    write("rows.jsonl", [{"id": 1, "text": "a"}])
    spec = DataConfig(path="rows.jsonl", prompt="{body}", completion="{queue}")
    reading = open_source(spec, spec.all_sources[0])
    ((where, row),) = raw_records(reading.parts[0])
    with pytest.raises(DataError, match="""names the column "body", but the row has only 'id', 'text'"""):
        question_of(reading, reading.parts[0], where, row, None)


def test_bad_rows_are_all_told_with_their_lines_and_nothing_is_written():
    write("bad.jsonl", [{"prompt": LAND}, {"prompt": ""}, "{", {"other": 1}, {"prompt": "dog " * 300}])
    told = refused("plain", "--data", "bad.jsonl", "--out", "new.jsonl")
    assert all(f"bad.jsonl:{line}:" in told for line in (2, 3, 4)) and "--on-bad-row skip" in told
    write("long.jsonl", [{"prompt": LAND}, {"prompt": "dog " * 300}])
    assert "long.jsonl:2: has" in refused("plain", "--data", "long.jsonl", "--out", "new.jsonl")


def test_bad_rows_can_be_written_with_what_is_wrong_in_their_places(answers):
    rows = [{"prompt": LANDS[0]}, {"prompt": "", "id": 7}, "{", {"prompt": "dog " * 300}, {"prompt": LANDS[4]}]
    found, told = predicted("plain", rows, "--on-bad-row", "skip")
    assert [row["prediction"] for row in found] == [answers[0], None, None, None, answers[4]]
    assert [row.get("error", "")[:13] for row in found] == ["", *(f"rows.jsonl:{line}:" for line in (2, 3, 4)), ""]
    assert found[1]["id"] == 7 and told["answered"] == 2 and told["rows"] == 5 and len(told["errors"]) == 3
    write("rows.jsonl", ["{", "["])
    assert "No row can be answered" in refused(
        "plain", "--data", "rows.jsonl", "--out", "new.jsonl", "--on-bad-row", "skip"
    )


def test_a_file_that_is_there_stays_unless_it_was_said():
    write("rows.jsonl", [{"prompt": LAND}])
    Path("there.jsonl").write_text("mine")
    assert "--overwrite" in refused("plain", "--data", "rows.jsonl", "--out", "there.jsonl")
    assert Path("there.jsonl").read_text() == "mine"
    assert "the file of --data" in refused("plain", "--data", "rows.jsonl", "--out", "./rows.jsonl", "--overwrite")
    assert read("rows.jsonl") == [{"prompt": LAND}]


@pytest.mark.parametrize(
    ("rows", "words", "told"),
    [
        ([{"prompt": "a", "prediction": 1}], (), "--column"),
        ([{"prompt": "a"}, {"prompt": "a", "said": 1}], ("--column", "said"), "rows.jsonl:2: already has a column"),
        ([{"prompt": "a", "error": 1}], ("--on-bad-row", "skip"), '"error"'),
        ([{"text": "a"}], (), "plain text"),
        ([{"prompt": "a"}], ("--prompt", "{promt}"), 'Did you mean "prompt"?'),
        ([{"prompt": "a"}], ("--on-bad-row", "drop"), "stop or skip"),
        ([{"prompt": "a"}], ("--temperature", "-1"), "temperature"),
        ([], (), "no rows"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(monkeypatch, rows, words, told):
    monkeypatch.setattr(verb, "load_tuned", None)
    write("rows.jsonl", rows)
    assert told in refused("plain", "--data", "rows.jsonl", "--out", "new.jsonl", *words)


@pytest.mark.parametrize("out", ["new.txt", "new", "rows.jsonl/x.jsonl", "runs"])
def test_a_place_that_cannot_be_written_is_told_at_once(out):
    write("rows.jsonl", [{"prompt": LAND}])
    assert out in refused("plain", "--data", "rows.jsonl", "--out", out)


def test_what_is_stopped_on_the_way_leaves_no_file(monkeypatch):
    def fails(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "answers_in_turn", fails)
    write("rows.jsonl", [{"prompt": LAND}])
    refused("plain", "--data", "rows.jsonl", "--out", "new.jsonl", code=130)
    assert not list(Path().glob(".new*"))


def test_answers_that_repeat_themselves_are_named(monkeypatch):
    from rankwise.inference import decoding

    monkeypatch.setattr(decoding, "repeats", lambda ids: True)
    write("rows.jsonl", [{"prompt": land} for land in LANDS])
    words = ("predict", "plain", "--data", "rows.jsonl", "--out", "out.jsonl", "--overwrite", "--max-new-tokens", 20)
    told = json.loads(rankwise(*words, "--json", "--base").stdout)
    assert told["repeated"] and len(told["repeated"]) == told["stopped"]["repetition"]
    result = rankwise(*words, "--base")
    assert f"[stopped: the answer repeats itself] in {told['repeated'][0]}" in result.stderr
    unchecked = json.loads(rankwise(*words, "--json", "--base", "--no-repetition-check").stdout)
    assert "repetition" not in unchecked["stopped"]


def test_a_text_fills_in_the_prompt_of_the_run_and_its_answer_alone_is_printed(answers):
    result = rankwise("predict", "plain", "--text", LANDS[0], "--text", LANDS[1], *SHORT, "--quiet")
    assert result.exit_code == 0 and result.stdout == "".join(f"{answer}\n" for answer in answers[:2])
    assert rankwise("predict", "plain", "--text", "-", *SHORT, typed=f"{LANDS[2]}\n").stdout == f"{answers[2]}\n"
    [row] = printed("predict", "plain", "--text", LANDS[3], *SHORT)["predictions"]
    assert row == {"prediction": answers[3]}
    told = refused("texts", "--text", "a text")
    assert "has the columns 'mood' and 'land', which one text does not fill" in told


@pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
def test_rows_come_from_stdin_and_the_first_of_them_go_to_stdout(answers, form):
    rows = [{"prompt": land} for land in LANDS]
    given = {"jsonl": "".join(json.dumps(row) + "\n" for row in rows), "json": json.dumps(rows),
             "csv": "prompt\n" + "".join(f"{land}\n" for land in LANDS)}[form]  # fmt: skip
    result = rankwise("predict", "plain", "--data", "-", "--rows", 3, *SHORT, "--quiet", typed=given)
    assert result.exit_code == 0, result.output
    assert list(map(json.loads, result.stdout.splitlines())) == [
        row | {"prediction": answer} for row, answer in zip(rows[:3], answers, strict=False)
    ]


@pytest.mark.parametrize("words", [(), ("--data", "rows.jsonl", "--text", "a")])
def test_rows_or_a_text_are_needed(words):
    assert "give rows with --data, or a text with --text; one of the two" in refused("plain", *words)
