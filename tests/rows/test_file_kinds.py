"""The same rows are the same examples, whatever kind of file holds them; which of them are read is told to the row.

Splits, drawing, mixing and holding out are counted exactly, and the data report counts the rows of files, however often
they are seen.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.files import columnar
from rankwise.rows.files.files import records
from rankwise.rows.preparing import prepare
from rankwise.rows.sources import open_source
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent
from rankwise.training.training import data_facts

ODD = [
    'says "hi", twice',
    "two\nlines",
    "a\tb",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "C:\\new",
    "'single'",
    "a, b; c",
    "#x\u2028y\x85z",
]
ROWS = [{"prompt": f"{ODD[n % 8]} asked {n}", "completion": f"{ODD[(3 * n + 1) % 8]} said {n}"} for n in range(30)]
TURNS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS
]

# Each kind of file: what writes rows to it.


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def as_list(path, rows, indent=None):
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")


def as_table(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def as_parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def as_arrow(path, rows, make=pa.ipc.new_file):
    table = pa.Table.from_pylist(rows)
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def as_saved(path, rows, shards=1):
    datasets.Dataset.from_list(rows).save_to_disk(path, num_shards=shards)


def as_saved_splits(path, rows):
    splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:3])}
    datasets.DatasetDict(splits).save_to_disk(path)


def as_shards(path, rows, write=as_lines, suffix="jsonl"):
    path.mkdir()
    half = len(rows) // 2
    write(path / f"train-00000-of-00002.{suffix}", rows[:half])
    write(path / f"train-00001-of-00002.{suffix}", rows[half:])
    write(path / f"valid.{suffix}", rows[:2])
    (path / "README.md").write_text("---\nlicense: mit\n---\n# Rows\n")
    (path / "notes.txt").write_text("no rows\n")


FLAT = {
    "JSON lines": ("rows.jsonl", as_lines),
    "a JSON list": ("rows.json", as_list),
    "an indented JSON list": ("rows.json", lambda path, rows: as_list(path, rows, 2)),
    "CSV": ("rows.csv", as_table),
    "TSV": ("rows.tsv", lambda path, rows: as_table(path, rows, "\t")),
}
NESTED = {
    "Parquet": ("rows.parquet", as_parquet),
    "Parquet in row groups": ("rows.parquet", lambda path, rows: as_parquet(path, rows, row_group_size=7)),
    "Parquet with a dictionary": ("rows.parquet", lambda path, rows: as_parquet(path, rows, compression="zstd")),
    "an Arrow file": ("rows.arrow", as_arrow),
    "an Arrow stream": ("rows.arrow", lambda path, rows: as_arrow(path, rows, pa.ipc.new_stream)),
    "a saved data set": ("rows", as_saved),
    "a saved data set in shards": ("rows", lambda path, rows: as_saved(path, rows, 3)),
    "a saved data set of splits": ("rows", as_saved_splits),
    "a folder of shards": ("rows", as_shards),
    "a folder of Parquet shards": ("rows", lambda path, rows: as_shards(path, rows, as_parquet, "parquet")),
}
KINDS = FLAT | NESTED


def reading_of(path, **settings):
    spec = DataConfig(path=str(path), **settings)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    return reading, examples


def without_where(examples):
    return [replace(example, where="") for example in examples]


def contents(examples):
    return [[message.content for message in example.messages] for example in examples]


@pytest.fixture(scope="module")
def writing(hub_tokenizer):
    tokenizer = HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])
    return TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)


@pytest.fixture
def prepared(writing):
    def make(path=None, **settings):
        named = {} if path is None else {"path": str(path)}
        return prepare(DataConfig(**named, **settings), writing, silent)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_are_the_same_examples(kind, tmp_path):
    name, write = KINDS[kind]
    write(tmp_path / name, ROWS)
    reading, examples = reading_of(tmp_path / name)
    assert reading.skipped == []
    assert reading.rows == len(ROWS)
    assert {part.format for part in reading.parts} == {"prompt"}
    assert contents(examples) == [[row["prompt"], row["completion"]] for row in ROWS]
    assert len({example.where for example in examples}) == len(ROWS)
    assert all(example.where.startswith(f"{tmp_path / name}") for example in examples)


@pytest.mark.parametrize("kind", [*[*FLAT][:3], *NESTED])
def test_the_same_conversations_are_the_same_examples(kind, tmp_path):
    name, write = KINDS[kind]
    arguments = json.dumps({"city": "Oslo"})
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    tools = [{"type": "function", "function": {"name": "find", "description": "finds"}}]
    called = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "where?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "here", "tool_call_id": "c1"},
        {"role": "assistant", "content": "there", "weight": 1},
    ]
    rows = [row | {"tools": tools} for row in (*TURNS, {"messages": called})]
    as_lines(tmp_path / "first.jsonl", rows)
    write(tmp_path / name, rows)
    reading, examples = reading_of(tmp_path / name)
    assert reading.skipped == []
    assert without_where(examples) == without_where(reading_of(tmp_path / "first.jsonl")[1])
    assert examples[-1].messages[2].tool_calls[0].arguments == {"city": "Oslo"}


@pytest.mark.parametrize("kind", [*FLAT][3:])
def test_a_table_holds_conversations_as_json(kind, tmp_path):
    name, write = KINDS[kind]
    as_lines(tmp_path / "first.jsonl", TURNS)
    write(tmp_path / name, [{"messages": json.dumps(row["messages"])} for row in TURNS])
    assert without_where(reading_of(tmp_path / name)[1]) == without_where(reading_of(tmp_path / "first.jsonl")[1])


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufdd0"), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)


@settings(max_examples=draws(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([*FLAT, *NESTED][:10]), pairs=PAIRS)
def test_any_text_is_read_back_to_the_letter_from_every_kind(tmp_path_factory, kind, pairs):
    pairs = [(asked, said) for asked, said in pairs if asked.strip() and said.strip()]
    if not pairs:
        return
    name, write = KINDS[kind]
    path = tmp_path_factory.mktemp("any") / name
    write(path, [{"prompt": asked, "completion": said} for asked, said in pairs])
    assert contents(reading_of(path)[1]) == [list(pair) for pair in pairs]


# Where a row stands


@pytest.mark.parametrize("indent", [0, 1, 4])
def test_a_row_of_a_json_list_has_the_line_it_begins_on(tmp_path, indent):
    as_list(tmp_path / "rows.json", ROWS, indent)
    lines = (tmp_path / "rows.json").read_text().splitlines()
    begins = [number for number, line in enumerate(lines, start=1) if line.strip() == "{"]
    assert places(tmp_path / "rows.json") == begins


def test_blank_lines_in_and_between_the_rows_of_a_list_count(tmp_path):
    first, second = json.dumps(ROWS[0]), json.dumps(ROWS[1])
    (tmp_path / "rows.json").write_text(f"\n\n[\n\n{first}\n,\n\n{second}\n\n]\n")
    assert places(tmp_path / "rows.json") == [5, 8]


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_of_a_table_has_the_line_it_begins_on(tmp_path, name, delimiter, end):
    (tmp_path / name).write_text(
        end.join([f"prompt{delimiter}completion", f'"a{end}b{end}c"{delimiter}d', "", f"e{delimiter}f",
                  f'"g"{delimiter}"{end}h"', f"i{delimiter}j", ""]),
        newline="",
    )  # fmt: skip
    assert places(tmp_path / name) == [2, 6, 7, 9]


@pytest.mark.parametrize("kind", ["Parquet in row groups", "an Arrow stream"])
def test_a_row_of_a_binary_file_has_its_number(tmp_path, kind):
    name, write = KINDS[kind]
    write(tmp_path / name, ROWS)
    assert places(tmp_path / name) == list(range(1, 31))


def places(path):
    return [int(example.where.rpartition(":")[2].partition(" ")[0]) for example in reading_of(path)[1]]


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_a_bad_row_behind_cells_of_many_lines_is_told_with_its_own_line(tmp_path, prepared, name, delimiter):
    rows = [f"prompt{delimiter}completion", f'"a\nb\nc"{delimiter}d', f"e{delimiter}", f"f{delimiter}g"]
    (tmp_path / name).write_text("\n".join(rows))
    data_report = prepared(tmp_path / name, on_bad_row="skip").data_report
    assert [skipped.where for skipped in data_report.skipped_rows] == [f"{tmp_path / name}:5"]


# Splits


@pytest.fixture
def split_folder(tmp_path):
    as_shards(tmp_path / "rows", ROWS)
    return tmp_path / "rows"


def test_of_a_folder_the_training_files_are_read_and_the_others_named(split_folder, prepared):
    made = prepared(split_folder)
    assert [Path(file.name).name for file in made.data_report.files] == [
        "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl",
    ]  # fmt: skip
    assert made.data_report.left_aside == ("valid.jsonl",)
    assert len(made.trained) == made.data_report.rows == 30
    assert {file.licence for file in made.data_report.files} == {"MIT"}


def test_another_split_is_read_if_it_is_asked_for(split_folder, prepared):
    made = prepared(split_folder, split="valid")
    assert len(made.trained) == 2
    assert len(made.data_report.left_aside) == 2


def test_a_split_that_is_not_there_is_told_with_those_that_are(split_folder):
    with pytest.raises(DataError, match=r'no files of a split "test".*train.*valid'):
        reading_of(split_folder, split="test")


def test_a_file_has_no_splits(tmp_path):
    as_lines(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match="a single file without splits"):
        reading_of(tmp_path / "train.jsonl", split="train")


LAYOUTS = {
    "files of a split in its folder": ["train/part-0.jsonl", "train/part-1.jsonl", "test/part-0.jsonl"],
    "one file of each split": ["train.jsonl", "test.jsonl", "validation.jsonl"],
    "the hub's folder of data": ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
    "the hub's folder of a subset": ["main/train-00000-of-00001.jsonl", "main/test-00000-of-00001.jsonl"],
    "the hub's converted files": ["default/train/0000.jsonl", "default/test/0000.jsonl"],
    "the longer word": ["training.jsonl", "test.jsonl"],
    "the word at the end": ["mydata_train.jsonl", "mydata_test.jsonl", "mydata_eval.jsonl"],
    "the word in the middle": ["my-train-v1.jsonl", "my-validation-v1.jsonl", "my-dev-v1.jsonl"],
    "numbers behind the word": ["train1.jsonl", "train2.jsonl", "test.jsonl", "test2.jsonl"],
    "sets": ["trainset.jsonl", "testset.jsonl", "devset.jsonl"],
    "data of each": ["traindata.jsonl", "testdata.jsonl"],
    "capitals": ["My.TRAIN.jsonl", "My.Test.jsonl"],
    "names that say first what the rows are about": ["eval_harness_train.jsonl", "training_rules_test.jsonl"],
    "words in folders of more words": ["v1-training/a.jsonl", "v1-testing/a.jsonl", "v1-evaluation/a.jsonl"],
    "a file whose split nobody says": ["training/a.jsonl", "extra.jsonl"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_for_testing_is_not_trained_on(layout, tmp_path, prepared):
    for number, name in enumerate(LAYOUTS[layout]):
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        as_lines(tmp_path / "rows" / name, [{"prompt": f"{name} {number}", "completion": "yes"}])
    training = [name for name in LAYOUTS[layout] if "train" in name.lower() and "test" not in name]
    data_report = prepared(tmp_path / "rows").data_report
    assert [str(Path(file.name).relative_to(tmp_path / "rows")) for file in data_report.files] == training
    assert set(data_report.left_aside) == set(LAYOUTS[layout]) - set(training)


APART = ["test", "valid", "validation", "val", "dev", "eval", "evaluation", "testing", "my_test", "testset", "test1",
         "test/b"]  # fmt: skip


@pytest.mark.parametrize("apart", APART)
def test_beside_a_file_of_no_split_what_is_for_testing_is_left_aside_and_named(apart, tmp_path, prepared):
    (tmp_path / "rows" / "test").mkdir(parents=True)
    as_lines(tmp_path / "rows" / "a.jsonl", ROWS)
    as_lines(tmp_path / "rows" / f"{apart}.jsonl", ROWS[:3])
    made = prepared(tmp_path / "rows")
    assert made.data_report.left_aside == (f"{apart}.jsonl",)
    assert len(made.trained) == 30


@pytest.mark.parametrize("names", [["test.jsonl"], ["test/a.jsonl", "valid.jsonl"]])
def test_a_folder_of_nothing_but_what_is_for_testing_wants_a_word(names, tmp_path, prepared):
    for name in names:
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        as_lines(tmp_path / "rows" / name, ROWS)
    with pytest.raises(DataError, match=r"rows: .*data\.split"):
        prepared(tmp_path / "rows")
    assert len(prepared(tmp_path / "rows", split="test").trained) == 30


@pytest.mark.parametrize(
    ("asked", "read"),
    [("train", ["my_training.jsonl"]), ("training", ["my_training.jsonl"]), ("validation", ["dev.jsonl"]),
     ("dev", ["dev.jsonl"]), ("test", ["test1.jsonl", "test2.jsonl"]), ("extra", ["extra-0.jsonl"])],
)  # fmt: skip
def test_a_split_that_is_asked_for_is_found_by_each_of_its_words(asked, read, tmp_path):
    (tmp_path / "rows").mkdir()
    for name in ("my_training.jsonl", "dev.jsonl", "test1.jsonl", "test2.jsonl", "extra-0.jsonl"):
        as_lines(tmp_path / "rows" / name, ROWS)
    reading, _ = reading_of(tmp_path / "rows", split=asked)
    assert [Path(part.name).name for part in reading.parts] == read
    assert len(reading.left_aside) == 5 - len(read)


def test_a_folder_without_splits_is_read_whole(tmp_path):
    (tmp_path / "rows").mkdir()
    as_lines(tmp_path / "rows" / "a.jsonl", ROWS[:10])
    as_table(tmp_path / "rows" / "b.csv", ROWS[10:20])
    as_parquet(tmp_path / "rows" / "c.parquet", ROWS[20:])
    reading, examples = reading_of(tmp_path / "rows")
    assert contents(examples) == [[row["prompt"], row["completion"]] for row in ROWS]
    assert reading.left_aside == []


def test_what_a_program_kept_beside_a_saved_data_set_is_none_of_its_rows(tmp_path):
    # `map` on a saved data set leaves its result in the same folder
    as_saved(tmp_path / "rows", ROWS)
    datasets.enable_caching()
    datasets.load_from_disk(tmp_path / "rows").map(lambda row: {"prompt": row["prompt"].upper()})
    assert any(path.name.startswith("cache-") for path in (tmp_path / "rows").iterdir())
    assert contents(reading_of(tmp_path / "rows")[1]) == [[row["prompt"], row["completion"]] for row in ROWS]


# Cells that cannot be read


def strings(*values):
    """Bytes under the name of text, as a careless program writes them."""
    return pa.array(values, pa.binary()).view(pa.string())


def written(path, columns):
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_cell_that_is_no_text_costs_its_row_alone(name, alone, tmp_path):
    # its column was dropped in silence, and with an only column all of a batch
    cells = strings(*[b"caf\xe9" if number in (3, 1200) else f"text {number}".encode() for number in range(1500)])
    more = {} if alone else {"id": list(range(1500)), "language": ["en"] * 1500}
    file = written(tmp_path / name, {"text": cells} | more)
    reading, examples = reading_of(file)
    assert [where for where, _ in reading.skipped] == [f"{file}:4", f"{file}:1201"]
    assert all(why.startswith(f"{where}: ") and "'text'" in why and "UTF-8" in why for where, why in reading.skipped)
    assert [example.text for example in examples] == [f"text {n}" for n in range(1500) if n not in (3, 1200)]
    assert reading.rows == 1500


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_cell_that_is_no_text_inside_of_turns_costs_its_row_alone(name, tmp_path):
    turns = pa.StructArray.from_arrays(
        [pa.array(["user", "assistant"] * 3), strings(b"a", b"b", b"c", b"\xff", b"e", b"f")], ["role", "content"]
    )
    messages = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), turns)
    reading, examples = reading_of(written(tmp_path / name, {"messages": messages}))
    assert contents(examples) == [["a", "b"], ["e", "f"]]
    assert [where for where, _ in reading.skipped] == [f"{tmp_path / name}:2"]


def test_a_value_that_python_cannot_hold_costs_its_row_alone(tmp_path):
    when = pa.StructArray.from_arrays([pa.array([0, 10**15, 0], pa.timestamp("s"))], ["when"])
    table = {"prompt": ["a", "b", "c"], "completion": ["x", "y", "z"], "meta": when}
    reading, examples = reading_of(written(tmp_path / "rows.parquet", table))
    assert contents(examples) == [["a", "x"], ["c", "z"]]
    assert [where for where, _ in reading.skipped] == [f"{tmp_path / 'rows.parquet'}:2"]


def test_a_time_beyond_all_calendars_leaves_the_other_times_where_they_are(tmp_path):
    # no form reads a time, so its row is whole without it
    when = pa.array([0, 10**15, 0], pa.timestamp("s"))
    file = written(tmp_path / "rows.parquet", {"prompt": ["a", "b", "c"], "completion": ["x", "y", "z"], "when": when})
    assert [list(row) for _, row in records(file)] == [["prompt", "completion", "when"]] * 3
    assert [row["when"] is None for _, row in records(file)] == [False, True, False]
    reading, _ = reading_of(file, columns={"prompt": "when"})
    assert len(reading.skipped) == 3, "a time that is told to be read is refused, there or not"


# Drawing


@pytest.mark.parametrize("kind", ["JSON lines", "CSV", "Parquet", "a folder of shards"])
@pytest.mark.parametrize("count", [1, 7, 29, 30, 31, 1000])
def test_as_many_rows_are_drawn_as_asked_for_each_once_and_in_their_order(kind, count, tmp_path):
    name, write = KINDS[kind]
    write(tmp_path / name, ROWS)
    every = contents(reading_of(tmp_path / name)[1])
    drawn = contents(reading_of(tmp_path / name, rows=count)[1])
    assert len(drawn) == min(count, 30)
    numbers = [every.index(row) for row in drawn]
    assert numbers == sorted(set(numbers))


def test_what_is_drawn_is_said_by_the_seed_alone(tmp_path):
    as_lines(tmp_path / "rows.jsonl", ROWS)
    as_parquet(tmp_path / "rows.parquet", ROWS)
    drawn = {
        seed: [contents(reading_of(tmp_path / name, rows=10, seed=seed)[1]) for name in ("rows.jsonl", "rows.parquet")]
        for seed in range(4)
    }
    assert all(one == other for one, other in drawn.values())
    assert len({str(one) for one, _ in drawn.values()}) == 4


def test_drawn_rows_are_those_that_can_be_read(tmp_path, prepared):
    as_lines(tmp_path / "rows.jsonl", [*ROWS[:5], {"prompt": "x"}, *ROWS[5:10], {"prompt": 7, "completion": "y"}])
    made = prepared(tmp_path / "rows.jsonl", rows=8, on_bad_row="skip")
    assert len(made.trained) == 8
    assert (made.data_report.used, made.data_report.skipped) == (8, 2)
    assert made.data_report.files[0].rows == 12


# Mixing


@pytest.mark.parametrize("weight", [0.1, 0.5, 1, 1.5, 2, 2.5, 3, 10])
def test_a_row_is_seen_as_often_as_its_source_weighs_and_counted_once(weight, tmp_path, prepared):
    as_lines(tmp_path / "rows.jsonl", ROWS)
    as_lines(tmp_path / "other.jsonl", [{"prompt": "other", "completion": "yes"}])
    sources = [{"path": str(tmp_path / "rows.jsonl"), "weight": weight}, str(tmp_path / "other.jsonl")]
    made = prepared(sources=sources)
    once = prepared(sources=[str(tmp_path / "rows.jsonl"), str(tmp_path / "other.jsonl")])
    seen = Counter(made.trained.tolist())
    assert sum(seen.values()) == round(30 * weight) + 1
    assert seen.pop(30) == 1
    assert set(seen.values()) <= {int(weight), int(weight) + 1} and set(seen) <= set(range(30))
    assert len(seen) == (30 if weight >= 1 else round(30 * weight))
    assert made.data_report == once.data_report, "what the files hold is the same"
    assert data_facts(made).training_sequences == len(made.trained)
    assert made.trained_rows.tokens == sum(len(row.ids) for row in made.trained_rows)


def test_the_same_seed_mixes_the_same_and_another_otherwise(tmp_path, prepared):
    as_lines(tmp_path / "rows.jsonl", ROWS)
    source = {"path": str(tmp_path / "rows.jsonl"), "weight": 0.5}
    drawn = [prepared(sources=[source], seed=seed).trained.tolist() for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({str(numbers) for numbers in drawn}) == 3


def test_two_sources_of_one_file_are_drawn_apart(tmp_path, prepared):
    # drawn alike, half and half of a file would be half of it twice
    as_lines(tmp_path / "rows.jsonl", ROWS)
    source = {"path": str(tmp_path / "rows.jsonl"), "weight": 0.5}
    numbers = prepared(sources=[source, source]).trained
    assert {int(number) for number in numbers if number < 30} != {
        int(number) - 30 for number in numbers if number >= 30
    }


def test_a_weight_is_of_rows_and_a_row_of_several_tasks_is_drawn_whole(tmp_path, prepared):
    tasks = [
        {"instruction": f"do {n}", "instances": [{"input": "", "output": f"{n} {k}"} for k in range(3)]}
        for n in range(10)
    ]
    as_lines(tmp_path / "rows.jsonl", tasks)
    made = prepared(sources=[{"path": str(tmp_path / "rows.jsonl"), "weight": 1.5}])
    seen = Counter(made.trained.tolist())
    assert sum(seen.values()) == 45
    assert all(len({seen[3 * n + k] for k in range(3)}) == 1 for n in range(10))
    assert (made.data_report.rows, made.data_report.sequences) == (10, 30)


# Holding out


def rows_of(name, count):
    return [{"prompt": f"question {n} of {name}", "completion": f"answer {n} of {name}"} for n in range(count)]


@pytest.mark.parametrize(
    ("sizes", "held_out", "shares"),
    [((10,), 3, (3,)), ((20, 10), 6, (4, 2)), ((20, 10), 5, (3, 2)), ((3, 30, 3), 4, (0, 4, 0)), ((5, 5), 1, (1, 0)),
     ((7, 7, 7), 7, (3, 2, 2))],
)  # fmt: skip
def test_the_last_rows_of_each_source_are_held_out_by_its_size(sizes, held_out, shares, tmp_path, prepared, writing):
    for number, size in enumerate(sizes):
        as_lines(tmp_path / f"{number}.jsonl", rows_of(number, size))
    sources = [{"path": str(tmp_path / f"{number}.jsonl"), "weight": 2} for number in range(len(sizes))]
    made = prepared(sources=sources, held_out=held_out, held_out_order="last")
    measured = [writing.tokenizer.decode(row.ids) for row in made.measured_rows]
    trained = [writing.tokenizer.decode(row.ids) for row in made.trained_rows]
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        for n in range(size):
            text = f"question {n} of {number}<"
            apart = n >= size - share
            assert sum(text in row for row in measured) == apart
            assert sum(text in row for row in trained) == (0 if apart else 2)
    assert (made.data_report.validation_rows, len(measured)) == (held_out, held_out)
    assert made.data_report.rows == made.data_report.used == sum(sizes)


@pytest.mark.parametrize("place", [3, 9])
def test_a_row_that_is_left_out_is_neither_held_out_nor_counted_so(place, tmp_path, prepared):
    rows = rows_of("x", 10)
    rows[place]["completion"] = "word " * 200
    as_lines(tmp_path / "rows.jsonl", rows)
    made = prepared(tmp_path / "rows.jsonl", held_out=2, max_length=100)
    assert (len(made.trained), len(made.validation), made.data_report.validation_rows) == (7, 2, 2)


@pytest.mark.parametrize("weight", [0.5, 1.5, 2])
def test_a_row_that_is_left_out_has_no_part_in_a_mixture(weight, tmp_path, prepared):
    rows = rows_of("x", 20)
    for row in rows[:10]:
        row["completion"] = "word " * 200
    as_lines(tmp_path / "rows.jsonl", rows)
    made = prepared(sources=[{"path": str(tmp_path / "rows.jsonl"), "weight": weight}], max_length=100)
    assert len(made.trained) == round(10 * weight)


# Columns and labels

GERMAN = [{"frage": row["prompt"], "antwort": row["completion"], "nummer": n} for n, row in enumerate(ROWS)]


@pytest.mark.parametrize("kind", ["JSON lines", "CSV", "Parquet"])
@pytest.mark.parametrize(
    ("columns", "form"),
    [({"prompt": "frage", "completion": "antwort"}, "prompt"),
     ({"instruction": "frage", "output": "antwort"}, "alpaca"),
     ({"instruction": "frage", "response": "antwort"}, "dolly"), ({"text": "antwort"}, "text")],
)  # fmt: skip
def test_columns_of_other_names_are_read_as_told(kind, columns, form, tmp_path):
    name, write = KINDS[kind]
    write(tmp_path / name, GERMAN)
    reading, examples = reading_of(tmp_path / name, columns=columns)
    assert reading.parts[0].format == form
    assert reading.skipped == []
    said = [example.text or example.messages[-1].content for example in examples]
    assert said == [row["completion"] for row in ROWS]


def test_columns_may_change_places(tmp_path):
    as_lines(tmp_path / "rows.jsonl", ROWS)
    _, examples = reading_of(tmp_path / "rows.jsonl", columns={"prompt": "completion", "completion": "prompt"})
    assert contents(examples) == [[row["completion"], row["prompt"]] for row in ROWS]


def test_a_column_that_has_our_name_is_not_read_where_another_was_told(tmp_path):
    as_lines(tmp_path / "rows.jsonl", [row | {"answer": "not this"} for row in ROWS])
    columns = {"prompt": "prompt", "completion": "answer"}
    _, examples = reading_of(tmp_path / "rows.jsonl", columns=columns)
    assert {example.messages[-1].content for example in examples} == {"not this"}


def test_a_column_that_no_row_has_is_told_with_the_nearest(tmp_path, prepared):
    as_lines(tmp_path / "rows.jsonl", GERMAN)
    data_report = prepared(tmp_path / "rows.jsonl", columns={"prompt": "fragen", "completion": "antwort"}).data_report
    assert "rows.jsonl:1: " in data_report.fatal[0] and '"frage"' in data_report.fatal[0]


def test_a_field_that_no_form_has_is_told_with_the_nearest(tmp_path, prepared):
    as_lines(tmp_path / "rows.jsonl", GERMAN)
    with pytest.raises(DataError, match=r'"prompts".*"prompt"'):
        prepared(tmp_path / "rows.jsonl", columns={"prompts": "frage"})


@pytest.mark.parametrize("kind", ["JSON lines", "CSV", "Parquet", "an Arrow file"])
@pytest.mark.parametrize("named", [False, True])
def test_labels_are_named_by_their_numbers(kind, named, tmp_path):
    name, write = KINDS[kind]
    names = ("bad", "fair", "good")
    rows = [{"text": f"review {n}", "label": names[n % 3] if named else n % 3} for n in range(9)]
    write(tmp_path / name, rows)
    reading, examples = reading_of(tmp_path / name, labels=names)
    assert reading.parts[0].format == "classification" and not reading.skipped
    assert [example.messages[-1].content for example in examples] == [names[n % 3] for n in range(9)]


def test_without_names_a_label_is_learned_as_it_stands(tmp_path):
    as_lines(tmp_path / "rows.jsonl", [{"text": "a", "label": 3}, {"text": "b", "label": "three"}])
    assert contents(reading_of(tmp_path / "rows.jsonl")[1]) == [["a", "3"], ["b", "three"]]


# A hub data set: a small server on this machine answers as the real hub does; everything else is real.

COMMITS = {"main": "b" * 40, "v1": "c" * 40, "labelled": "d" * 40, "damaged": "e" * 40}
TRAIN = "data/train-00000-of-00001.parquet"
VISITS = """
import json, os, sys
from urllib.request import urlopen
from rankwise.errors import DataError
from rankwise.rows.preparing import content_identity
from rankwise.rows.sources import open_source
from rankwise.runs.records import silent
from rankwise.config.data import DataConfig
from rankwise.commands.data import count_only

def asked():
    return int(urlopen(sys.argv[2] + "/asked").read())

def twice(revision):
    spec, first = DataConfig(path="hub:me/tiny", revision=revision), asked()
    content_identity(spec)
    before = asked()
    data_report = count_only(spec, silent)
    return [before > first, asked() - before, data_report.files[0].sha256, data_report.licence]

def read(settings):
    spec = DataConfig(path="hub:me/tiny", **settings)
    try:
        reading = open_source(spec, spec.all_sources[0])
        rows = [example for chunk in reading.chunks() for (example,) in chunk]
    except DataError as error:
        return str(error)
    shown = [[example.where, *(message.content for message in example.messages)] for example in rows]
    return [shown, reading.parts[0].licence, [why for _, why in reading.skipped]]

print(json.dumps([twice(revision) for revision in ("main", "v1")]))
print(json.dumps([read(settings) for settings in eval(sys.argv[1])]))
os.chdir("beside")
print(json.dumps(read({})))
"""
ASKED = [{}, {"split": "validation"}, {"revision": "v1"}, {"split": "validation", "revision": "v1"}]
NONE = [{"split": "nope"}, {"revision": "v9"}, {"subset": "nope"}]
ODD = [{"revision": "labelled"}, {"revision": "labelled", "labels": ("no", "yes")}, {"revision": "damaged"}]
LABELLED = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})


def labelled(*labels):
    buffer = io.BytesIO()
    rows = {"text": [f"text {number}" for number in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=LABELLED).to_parquet(buffer)
    return buffer.getvalue()


def parquet_of(*words):
    buffer = io.BytesIO()
    prompts = strings(*[word if isinstance(word, bytes) else word.encode() for word in words])
    pq.write_table(pa.table({"prompt": prompts, "completion": ["yes"] * len(words)}), buffer)
    return buffer.getvalue()


def repository(version):
    return {
        "README.md": b"---\nlicense: mit\n---\n# Tiny\n",
        TRAIN: parquet_of(f"one-{version}", f"two-{version}"),
        "data/validation-00000-of-00001.parquet": parquet_of(f"three-{version}"),
    }


@contextmanager
def hub() -> Iterator[str]:
    """Its address."""
    by_name = {name: repository(name) for name in ("main", "v1")}
    by_name["labelled"] = {TRAIN: labelled(0, 1, None, 1)}
    by_name["damaged"] = {TRAIN: parquet_of(b"one", b"caf\xe9", b"three", b"\xff", b"five")}
    at = {COMMITS[name]: files for name, files in by_name.items()} | by_name
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._respond(body=False)

        def do_GET(self) -> None:
            self._respond(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _respond(self, body: bool) -> None:
            if self.path == "/asked":
                return self._send(str(len(asked)).encode(), "", body)
            asked.append(self.path)
            what, _, rest = (
                self.path.split("?")[0].removeprefix("/api").removeprefix("/datasets/me/tiny/").partition("/")
            )
            name, _, inside = rest.partition("/")
            files = at.get(name, {})
            commit = COMMITS.get(name, name)
            if what == "tree" and files:
                there = [path for path in files if path.startswith(inside)]
                listed = [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in there]
                folder = [] if inside else [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}]
                self._send(json.dumps([*listed, *folder]).encode(), commit, body)
            elif what == "revision" and files:
                facts = {"id": "me/tiny", "sha": commit, "siblings": [{"rfilename": path} for path in files]}
                self._send(json.dumps(facts).encode(), commit, body)
            elif what == "resolve" and inside in files:
                self._send(files[inside], commit, body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if files else "RevisionNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, content: bytes, commit: str, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What one process, whose library takes the server for the hub, was given: twice each of two revisions; of each of
    the settings the rows, the licence and what is wrong with other rows, or why there are none; and the same from a
    folder in which the data set's name is that of a file."""
    folder = tmp_path_factory.mktemp("visits")
    (folder / "beside" / "me" / "tiny").mkdir(parents=True)
    as_lines(folder / "beside/me/tiny/train.jsonl", [{"prompt": "of this machine", "completion": "yes"}])
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    with hub() as address:
        done = subprocess.run(
            [sys.executable, "-c", VISITS, repr([*ASKED, *NONE, *ODD]), address],
            env=environment | {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hf")}, cwd=folder, capture_output=True,
            text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_of_a_hub_data_set_the_split_and_the_revision_are_read_that_were_asked_for(visits):
    told = visits[1]
    assert [[row[:2] for row in rows] for rows, _, _ in told[:4]] == [
        [["hub:me/tiny/train:1", "one-main"], ["hub:me/tiny/train:2", "two-main"]],
        [["hub:me/tiny/validation:1", "three-main"]],
        [["hub:me/tiny/train:1", "one-v1"], ["hub:me/tiny/train:2", "two-v1"]],
        [["hub:me/tiny/validation:1", "three-v1"]],
    ]
    assert told[0][1].lower() == "mit", "as its card says"
    assert len(told) == 10 and all(why.startswith("hub:me/tiny: cannot be loaded: ") for why in told[4:7])


def test_labels_of_a_hub_data_set_are_learned_by_their_names_and_a_damaged_row_costs_only_itself(visits):
    own, given_names, damaged = visits[1][7:]
    answers = {name: [row[-1] for row in rows] for name, (rows, _, _) in (("own", own), ("given", given_names))}
    assert answers == {"own": ["bad", "good", "good"], "given": ["no", "yes", "yes"]}  # "0" and "1" were learned
    assert [row[0] for row in own[0]] == [f"hub:me/tiny/train:{number}" for number in (1, 2, 4)]
    assert own[2][0].startswith("hub:me/tiny/train:3: the label is null")
    rows, _, [first, second] = damaged  # was a traceback
    assert [(row[0], row[-1]) for row in rows] == [(f"hub:me/tiny/train:{number}", "yes") for number in (1, 3, 5)]
    assert first.startswith("hub:me/tiny/train:2: ") and second.startswith("hub:me/tiny/train:4: ")


def test_a_hub_data_set_is_not_looked_for_in_the_folder_we_are_in(visits):
    # `datasets` would read the folder, and the data report would name the hub
    assert "a local file or folder has the same name" in visits[2]


def test_a_hub_data_set_is_asked_for_once_and_its_content_has_a_sha256(visits):
    # its identity is expected for the cache of encoded rows, and then its rows
    for some, more, identity, licence in visits[0]:
        assert (some, more, licence) == (True, 0, "MIT")
        assert len(identity) == 64 and set(identity) <= set("0123456789abcdef")
    assert visits[0][0][2] != visits[0][1][2]


def test_a_small_parquet_file_whose_rows_fill_the_memory_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "rows.parquet"
    as_parquet(file, [{"prompt": "x" * 100_000, "completion": "y"}] * 3000)
    assert file.stat().st_size < 100_000
    monkeypatch.setattr(columnar, "MOST_BYTES", 50_000_000)
    with pytest.raises(DataError, match=r"its rows take more than 50,000,000"):
        list(columnar.parquet(file, lambda share: None))
    monkeypatch.setattr(columnar, "MOST_BYTES", 500_000_000)
    assert len(list(columnar.parquet(file, lambda share: None))) == 3000
