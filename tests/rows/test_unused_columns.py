"""Columns that no part of a row is made of are named, and those with text in most rows stop a training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kit.command import rankwise
from kit.shell import typed_in_bash
from rankwise.commands.data import count_only
from rankwise.config.data import DataConfig
from rankwise.errors import ConfigError
from rankwise.rows.report import unused as unused_module
from rankwise.rows.report.raw_rows import RawReport, problems, sentences, unused_columns
from rankwise.rows.sources import open_source
from rankwise.runs.records import silent

PLACES = ("river", "market", "castle", "harbour", "village", "forest", "valley", "station", "garden", "library")


def passages(count):
    """Rows whose question cannot be answered without the passage."""
    return [
        {
            "passage": f"Near the {PLACES[n % 10]} number {n} stood a basket with {n} apples that nobody had counted.",
            "question": f"How many apples ({n}) are there?",
            "answer": f"{n} apples",
        }
        for n in range(count)
    ]


def pairs(count, **more):
    """`more` makes the value of a column from a row's number."""
    return [
        {"question": f"What is {n} and {n}?", "answer": f"It comes to {2 * n}."}
        | {name: make(n) for name, make in more.items()}
        for n in range(count)
    ]


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def data_report(name="rows.jsonl", **settings):
    return count_only(DataConfig(path=name, **settings), silent)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("count", [1, 40])
def test_a_passage_that_is_not_used_stops_and_the_sentence_says_the_way_out(count, tiny_folder):
    write("rows.jsonl", passages(count))
    told = rankwise("data", "check", "rows.jsonl", "--model", tiny_folder)
    (sentence,) = [line for line in told.stdout.splitlines() if "the column 'passage' has text" in line]
    assert told.exit_code == 2 and "'passage'" in sentence and "--ignore-columns passage" in sentence
    assert '--prompt "{passage} {question}" --completion "{answer}"' in sentence
    out = ["--prompt", "{passage} {question}", "--completion", "{answer}"]
    for way in (out, ["--ignore-columns", "passage"]):
        assert rankwise("data", "check", "rows.jsonl", "--model", tiny_folder, *way).exit_code == 0
    as_json = rankwise("data", "check", "rows.jsonl", "--model", tiny_folder, "--json")
    (column,) = json.loads(as_json.stdout)["unused_columns"]
    assert column["column"] == "passage" and column["stops"] and (column["filled"], column["rows"]) == (count, count)
    assert column["example"].startswith("'Near the river") and len(column["example"]) <= 60
    trained = rankwise("train", "--data", "rows.jsonl", "--model", tiny_folder, "--run", "r")
    assert trained.exit_code == 2 and "'passage'" in trained.output
    shown = rankwise("data", "preview", "rows.jsonl", "--model", tiny_folder)
    assert "'passage'" in shown.stderr


@pytest.mark.parametrize("options", [
    lambda n: [f"{PLACES[n % 10]}", f"the {PLACES[n % 7]}", f"{n}"], lambda n: f"A. {PLACES[n % 10]} B. {n} C. a fox",
    lambda n: [str(n), str(n + 1), str(n + 2)], lambda n: f"这是第{n}个完全不同的句子而且没有空格",
])  # fmt: skip
def test_options_that_are_not_used_stop(options):
    write("rows.jsonl", pairs(12, options=options))
    (problem,) = data_report().fatal
    assert "'options'" in problem and '--prompt "{question} {options}" --completion "{answer}"' in problem


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda n: f"Tue, {n + 1:02d} Mar 2024 10:11:{n} GMT", "no text of several words"),
        (lambda n: f"March {n}, 2024 at 9:{n} AM", "no text of several words"),
        (lambda n: f"C:\\My Documents\\Some Folder\\file {n}.txt", "no text of several words"),
        (lambda n: f"/home/some body/their files/text {n}.txt", "no text of several words"),
        (lambda n: n, "no text of several words"), (lambda n: f"8f3a-{n}", "no text of several words"),
        (lambda n: f"https://example.org/{n}/a", "no text of several words"),
        (lambda n: "Answer the question in one sentence.", "few different values"),
        (lambda n: f"the {PLACES[n % 3]} of questions", "few different values"),
        (lambda n: f"What is {n} and {n}?", "already in the prompt"),
        (lambda n: f"what  is {n} AND {n}?", "already in the prompt"),
        (lambda n: f"Question: What is {n} and {n}? Answer: It comes to {2 * n}. The end.", "already in the prompt"),
        (lambda n: f"a remark about row {n} alone" if n < 6 else None, "text in few rows"),
        (lambda n: {"lang": "en", "n": n}, "no text of several words"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_its_own_is_named_and_stops_nothing(make, why):
    write("rows.jsonl", pairs(20, extra=make))
    found = data_report()
    (column,) = found.unused_columns
    assert (found.fatal, column.column, column.stops) == ((), "extra", False) and why in column.why
    assert column.filled == sum(make(n) not in (None, "") for n in range(20)) and column.rows == 20
    assert any("'extra'" in warning for warning in found.warnings)


def test_text_and_label_choose_the_columns_and_the_others_stop_nothing():
    write("rows.jsonl", [row | {"kind": "ab"[n % 2]} for n, row in enumerate(passages(12))])
    chosen = data_report(columns={"text": "question", "label": "kind"})
    (sentence,) = [one for one in chosen.warnings if "not used" in one]
    assert not chosen.fatal and '"passage"' in sentence.replace("'", '"') and "--text and --label choose" in sentence
    assert data_report(columns={"label": "kind", "text": "question"} | {"text_pair": "answer"}).fatal == ()
    assert "'passage' has text" in " ".join(data_report(columns={"prompt": "question"}).fatal)


def test_columns_that_are_used_or_empty_are_not_named():
    write(
        "rows.jsonl", pairs(5, context=lambda n: f"a long remark on {n}", system=lambda n: "Be kind.", x=lambda n: "")
    )
    assert data_report().unused_columns == ()
    how = {"prompt": "{question}", "completion": "{answer}", "system": "{system}"}
    assert [column.column for column in data_report(**how).unused_columns] == ["context"]
    write("rows.jsonl", pairs(5, topic=lambda n: f"a long remark on {n}"))
    assert data_report(group="topic", held_out=2).unused_columns == () != data_report().unused_columns
    ignored = data_report(group="topic", held_out=2, ignore_columns="topic")
    assert ignored.fatal == () and ignored.hold_out is not None and ignored.hold_out.groups == 2


def test_a_field_that_another_column_stands_for_is_not_used_itself():
    rows = pairs(5, sql=lambda n: f"SELECT {n} FROM table WHERE x = {n}")
    write("rows.jsonl", rows)
    named = {column.column for column in data_report(columns={"answer": "sql"}).unused_columns}
    assert named == {"answer"}


def test_the_rows_to_measure_with_are_looked_at_too():
    write("rows.jsonl", pairs(5))
    write("valid.jsonl", passages(5))
    (column,) = data_report(validation="valid.jsonl").unused_columns
    assert (column.file, column.stops) == ("valid.jsonl", True)
    assert data_report(validation={"path": "valid.jsonl", "ignore_columns": "passage"}).fatal == ()


@pytest.mark.parametrize("name", ["The passage", "one, two", "it's a $x", "--odd", "the {x}", "line\nbreak"])
def test_the_ways_out_are_typed_as_printed_and_work(name, tiny_folder):
    write("rows.jsonl", pairs(5, **{name: lambda n: f"some words about row {n}", "more": lambda n: f"as said of {n}"}))
    for problem in data_report().fatal:
        ways = [re.search(r"out with (.*) \(data", problem)[1], re.search(r"with (--prompt .*), or leave", problem)[1]]
        for way in ways:
            words = typed_in_bash(way)
            assert rankwise("data", "check", "rows.jsonl", "--model", tiny_folder, *words).exit_code == 0, words


def test_the_reasons_for_an_answer_are_not_proposed_for_the_prompt():
    write("rows.jsonl", pairs(5, rationale=lambda n: f"because of the number {n} here"))
    (problem,) = data_report().fatal
    assert 'use it with --prompt "{question}" --completion "{rationale} {answer}", or' in problem


def test_what_no_text_can_hold_is_not_proposed_for_the_prompt():
    write("rows.jsonl", pairs(5, choices=lambda n: [f"one of {n}", {"text": "another of them"}]))
    (problem,) = data_report().fatal
    assert "--prompt" not in problem and "as text into the file" in problem and "--ignore-columns choices" in problem


def test_columns_are_named_in_the_order_of_the_file():
    names = [f"column {n}" for n in range(9)]
    write("rows.jsonl", pairs(5, **{name: lambda n: n for name in names}))
    assert [column.column for column in data_report().unused_columns] == names


def test_a_column_of_several_files_is_told_once_and_stops_by_any_of_them():
    Path("folder").mkdir()
    write("folder/a.jsonl", pairs(50, note=lambda n: n))
    write("folder/b.jsonl", pairs(4, note=lambda n: f"words about row {n} here"))
    (column,) = data_report("folder").unused_columns
    assert (column.file, column.filled, column.rows, column.stops) == ("folder", 54, 54, True)
    assert "words about row" in column.example, "the example is of the file that stops"


def test_what_is_left_out_is_not_there_and_a_name_that_no_row_has_is_refused():
    write("rows.jsonl", pairs(5, context=lambda n: f"remark {n}"))
    spec = DataConfig(path="rows.jsonl", ignore_columns="context")
    (chunk,) = open_source(spec, spec.all_sources[0]).chunks()
    assert all(example.messages[0].context == "" for row in chunk for example in row)
    (problem,) = data_report(ignore_columns="contxt").fatal
    assert '"contxt"' in problem and 'Did you mean "context"?' in problem
    for values in ({"columns": {"prompt": "x"}}, {"prompt": "{x}", "completion": "{y}"}):
        with pytest.raises(ConfigError, match="is in ignore_columns, but the rows need it"):
            DataConfig(path="a", ignore_columns=["x"], **values)


def test_a_long_file_is_judged_by_some_of_its_rows_and_counted_by_all(monkeypatch):
    monkeypatch.setattr(unused_module, "ALL_JUDGED", 20)
    write("rows.jsonl", passages(400))
    spec = DataConfig(path="rows.jsonl")
    raw = RawReport(open_source(spec, spec.all_sources[0]))
    assert sum(len(chunk) for chunk in raw.reading.chunks(raw.add)) == 400
    found = raw.unused["rows.jsonl"]
    assert (found.rows, found.columns["passage"].filled, found.judged) == (400, 400, 20 + 24)
    assert len(found.columns["passage"].values) <= unused_module.CATEGORIES + 1
    assert problems([raw], unused_columns([raw]))


def test_rows_that_were_encoded_before_name_their_columns_again(tiny_folder):
    write("rows.jsonl", pairs(5, extra=lambda n: n))
    first, again = (
        json.loads(rankwise("data", "check", "rows.jsonl", "--model", tiny_folder, "--json").stdout) for _ in range(2)
    )
    assert first == again and [column["column"] for column in again["unused_columns"]] == ["extra"]


SETS = (
    "alpaca/stanford_alpaca_100.json", "alpaca/train.json", "dolly/train.jsonl", "dolly/train_alpaca.jsonl",
    "glue/QNLI/dev_0_2999.tsv", "glue/RTE/dev.tsv", "glue/SST-2/dev.tsv", "gsm8k/test.jsonl", "lima/train.json",
    "oasst/messages.jsonl", "oasst/trees.jsonl", "self_instruct/seed_tasks.jsonl", "sharegpt/identity.json",
    "sharegpt/glaive_toolcall_train.json", "sharegpt/vicuna_dummy_conversation.json", "superbowl_facts/valid.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_no_data_set_stops_wrongly_however_few_of_its_rows_there_are(name, shared_data):
    spec = DataConfig(path=str(shared_data / name))
    for most in (3, 10, 300):
        raw = RawReport(open_source(spec, spec.all_sources[0]))
        for _, _ in zip(range(most), raw.reading._readable(raw.add), strict=False):
            pass
        assert problems([raw], unused_columns([raw])) == []


@pytest.mark.parametrize(("name", "value"), [
    ("note", "sk-" + "a1B2" * 6), ("password", "hunter22"), ("from", "jo@firm.org"), ("card", "4111 1111 1111 1111"),
    ("notes", {"api_key": "Q7x8" * 5}),
])  # fmt: skip
def test_a_value_that_looks_like_a_secret_is_not_printed(name, value):
    report = data_report(write("rows.jsonl", pairs(12, **{name: lambda n: value, "number": lambda n: n})))
    told = {one.column: line for one in report.unused_columns for line in sentences([one])}
    assert f"the column '{name}' is not used" in told[name] and "such as one that looks like a secret" in told[name]
    assert "such as 0" in told["number"]
    assert "hunter22" not in (text := report.model_dump_json()) and all(f"{one}" not in text for one in (value, "Q7x8"))


def test_the_unused_columns_of_a_file_are_named_in_one_line(tmp_path):
    rows = [{"prompt": f"q {n}", "completion": "a", "id": n, "kind": "b", "day": f"day {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = rankwise("data", "check", tmp_path / "rows.jsonl").stdout
    (line,) = [line for line in told.splitlines() if " not used" in line]
    assert "the columns 'id', 'kind', 'day' are not used (no text of several words" in line
