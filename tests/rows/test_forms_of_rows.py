"""Forms of rows that somebody has: read as meant, or refused with file and line, a reason and a way round.

One table of what is refused or warned of, and one of what is read, with the answers that a training learns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from rankwise.commands.data import count_only
from rankwise.config.data import DataConfig
from rankwise.config.reading import parse_setting, read_data
from rankwise.errors import ConfigError
from rankwise.rows.preparing import prepare
from rankwise.rows.sources import open_source
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent

ASK = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so"}
ROW = {"prompt": "why?", "completion": "so"}
DEEP: Any = reduce(lambda inside, _: {"a": inside}, range(900), 1)


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def talk(key: str, value: Any, holder: int = 1) -> bytes:
    turns = [dict(ASK), ANSWER | {"content": "wrong"}, ASK, ANSWER]
    turns[holder] |= {key: value}
    return lines({"messages": [ASK, ANSWER]}, {"messages": turns})


def with_tools(schema: Any) -> bytes:
    return lines({"messages": [ASK, ANSWER], "tools": [{"name": "f", "parameters": schema}]})


def packed(path: Path) -> None:
    """A workbook of 60 kB that declares 60 MB of one cell."""
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "")
        archive.writestr("xl/worksheets/sheet1.xml", b"x" * 60_000_000)


class Refused(NamedTuple):
    name: str
    content: bytes | Callable[[Path], object]
    where: str
    said: tuple[str, ...]
    field: str | None = None


TEXTS = [{"text": f"order {n} of a radio", "fields": {"n": n, "a": "x"}} for n in range(4)]
ANSWERED = [{"text": f"please send order {n} to me", "answer_text": f"I have sent the order {n}"} for n in range(9)]
QUOTE = b"prompt,completion\n" + b"a,b\n" * 3
REFUSED = {
    **{
        f"{key} of a turn": Refused(
            "x.jsonl", talk(key, value), "x.jsonl:2", (f"turn 2 has '{key}'", f"--ignore-columns {key}")
        )
        for key, value in {"mask": True, "prefix": True, "context": "c", "trainable": False, "foo": 0}.items()
    },
    "train of half": Refused("x.jsonl", talk("train", 0.5), "x.jsonl:2", ("turn 2", "train 0.5")),
    "train of a question": Refused("x.jsonl", talk("train", True, 0), "x.jsonl:2", ("turn 1", "only answers")),
    "no answer with a loss": Refused(
        "x.jsonl", lines({"messages": [ASK, ANSWER | {"loss": 0}]}), "x.jsonl:1", ("nothing",)
    ),
    "deep tools": Refused("x.jsonl", with_tools(DEEP), "x.jsonl:1", ("schema of tool 1", "100 levels")),
    "a deep answer": Refused("x.jsonl", lines(ROW | {"completion": DEEP}), "x.jsonl:1", ("completion", "100 levels")),
    "an answer that begins a conversation": Refused(
        "x.jsonl", lines(ROW | {"completion": {"role": "user"}}), "x.jsonl:1", ("text is expected",)
    ),
    "texts and numbers": Refused("x.jsonl", lines(ROW | {"completion": ["a", 1]}), "x.jsonl:1", ("expected",)),
    "a quote closed by the next": Refused("x.csv", QUOTE + b'c,"never\nd,"e"\n', "x.csv:5", ("ends in line 6",)),
    "an escaped quote": Refused("x.csv", QUOTE + b'"a\nb ""x"" c\n","d\n' + b"e,f\n" * 3, "x.csv:7", ("never closed",)),
    "a workbook of one cell": Refused("x.xlsx", packed, "x.xlsx", ("would unpack to 60,000,000", "50,000,000")),
    "lists of other names": Refused(
        "x.json",
        json.dumps({"a": [ROW], "b": {"c": [ROW]}}).encode(),
        "x.json:1",
        ("data.field=a or", "data.field=b.c"),
    ),
    "a field that is not there": Refused(
        "x.json", json.dumps({"data": [ROW]}).encode(), "x.json:1", ("'dat'", "'data'"), "dat"
    ),
    "a field that is no list": Refused("x.json", json.dumps({"data": 5}).encode(), "x.json:1", ("holds 5",), "data"),
    "an object of settings": Refused(
        "x.json", json.dumps({"lr": 1, "b": {}}, indent=1).encode(), "x.json:1", ("'lr'", "one JSON object per line")
    ),
    "answers beside a text": Refused(
        "x.jsonl", lines(*TEXTS), "x.jsonl", ('--prompt "{text}" --completion "{fields}"',)
    ),
    "text beside a text": Refused(
        "x.jsonl", lines(*ANSWERED), "x.jsonl", ('--completion "{answer_text}"', "--ignore-columns answer_text")
    ),
}


def written(path: Path, content: bytes | Callable[[Path], object]) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return str(path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_as_meant_is_refused_with_its_place(tmp_path, name):
    file, content, where, said, field = REFUSED[name]
    report = count_only(DataConfig(path=written(tmp_path / file, content), field=field), silent)
    (problem,) = report.fatal
    assert problem.startswith(f"{tmp_path / where}: "), problem
    assert all(part in problem for part in said), problem
    assert len(problem.splitlines()) == 1


FIELDS = {"b": 1, "a": "x"}
COLUMNS = {"prompt": {"0": "why?", "5": "how?"}, "completion": {"0": "so", "5": "thus"}}
READ: dict[str, tuple[str, bytes, dict[str, Any], list[str]]] = {
    "an object": ("x.jsonl", lines(ROW | {"completion": FIELDS}), {}, ['{"b": 1, "a": "x"}']),
    "a list of objects": ("x.jsonl", lines(ROW | {"completion": [FIELDS, {}]}), {}, ['[{"b": 1, "a": "x"}, {}]']),
    "a list of numbers": ("x.jsonl", lines(ROW | {"completion": [1, 2]}), {}, ["[1, 2]"]),
    "an output": ("x.jsonl", lines({"instruction": "a", "output": {"é": None}}), {}, ['{"é": null}']),
    "a response": ("x.jsonl", lines({"instruction": "a", "response": FIELDS}), {}, ['{"b": 1, "a": "x"}']),
    "an input's output": ("x.jsonl", lines({"input": "a", "output": FIELDS}), {}, ['{"b": 1, "a": "x"}']),
    "an assistant's": ("x.jsonl", lines({"messages": [ASK, ANSWER | {"content": FIELDS}]}), {}, ['{"b": 1, "a": "x"}']),
    "a column": ("x.jsonl", lines(TEXTS[0]), {"prompt": "{text}", "completion": "{fields}"}, ['{"n": 0, "a": "x"}']),
    "train false": ("x.jsonl", talk("train", False), {}, ["so", "so"]),
    "loss 0": ("x.jsonl", talk("loss", 0), {}, ["so", "so"]),
    "weight 0": ("x.jsonl", talk("weight", 0), {}, ["so", "so"]),
    "train true": ("x.jsonl", talk("train", True), {}, ["so", "wrong", "so"]),
    "keys without a value": ("x.jsonl", talk("refusal", None), {}, ["so", "wrong", "so"]),
    "no mask": ("x.jsonl", talk("mask", False), {}, ["so", "wrong", "so"]),
    "a key left out": ("x.jsonl", talk("mask", True), {"ignore_columns": ("mask",)}, ["so", "wrong", "so"]),
    "data": ("x.json", json.dumps({"version": 1, "data": [ROW, ROW]}).encode(), {}, ["so", "so"]),
    "data over lines": ("x.json", json.dumps({"n": {"a": []}, "data": [ROW]}, indent=1).encode(), {}, ["so"]),
    "a field": ("x.json", json.dumps({"a": {"b": [ROW]}, "data": [FIELDS]}).encode(), {"field": "a.b"}, ["so"]),
    "pandas": ("x.json", json.dumps(COLUMNS).encode(), {}, ["so", "thus"]),
    "pandas in a field": ("x.json", json.dumps({"t": COLUMNS}).encode(), {"field": "t"}, ["so", "thus"]),
    "one row alone": ("x.json", json.dumps(ROW).encode(), {}, ["so"]),
    "rows below an empty line": ("x.json", b"\n" + lines(ROW, ROW), {}, ["so", "so"]),
    "JSON under the name of CSV": ("x.csv", lines(ROW, ROW), {}, ["so", "so"]),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_meant_is_read(tmp_path, name):
    file, content, settings, answers = READ[name]
    spec = DataConfig(path=written(tmp_path / file, content), **settings)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    turns = [turn for example in examples for turn in example.messages if turn.role == "assistant" and turn.learned]
    assert (reading.skipped, [turn.content for turn in turns]) == ([], answers)
    assert count_only(spec, silent).fatal == ()


def test_the_rows_of_an_object_have_their_lines(tmp_path):
    path = written(tmp_path / "x.json", json.dumps({"version": [1], "data": [ROW, 7]}, indent=1).encode())
    (problem,) = count_only(DataConfig(path=path), silent).fatal
    assert problem.startswith(f"{path}:10 (element 2): holds a int")


def test_many_rows_left_out_are_a_warning(tmp_path, hub_tokenizer):
    rows = [{"prompt": f"{n} " * (200 if n % 20 == 0 else 1), "completion": f"so {n}"} for n in range(40)]
    tokenizer = HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])
    writing = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)
    path = written(tmp_path / "x.jsonl", lines(*rows))
    told = {
        limit: prepare(DataConfig(path=path, max_length=limit), writing, silent).data_report.warnings
        for limit in (90, 9000)
    }
    assert any("rows left out: 2 of 40 (5%): 2 too long, such as" in one for one in told[90])
    assert not any("left out" in one for one in told[9000])


def test_rows_of_which_too_few_can_be_used_to_hold_some_out_by_default_say_so(tmp_path, hub_tokenizer):
    rows = [{"prompt": f"{n} " * (200 if n % 10 == 0 else 1), "completion": f"so {n}"} for n in range(52)]
    tokenizer = HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])
    writing = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)
    path = written(tmp_path / "x.jsonl", lines(*rows))
    for settings, says in (({}, True), ({"held_out": 0}, False), ({"held_out": 3}, False), ({"rows": 40}, False)):
        report = prepare(DataConfig(path=path, max_length=90, **settings), writing, silent).data_report
        told = "no validation rows are held out, since only 46 of 52 rows can be used; --held-out N takes some"
        assert (told in report.warnings) == says


@pytest.mark.parametrize(("prompt", "warns"), [
    ("{prompt}\\nQ:", True), ("{prompt}\nQ:", False), ("$\\nabla$ {prompt}", False), ("{prompt}\\n", True),
])  # fmt: skip
def test_a_backslash_and_an_n_is_a_warning_with_what_to_type(tmp_path, prompt, warns):
    path = written(tmp_path / "x.jsonl", lines(ROW))
    report = count_only(DataConfig(path=path, prompt=prompt, completion="{completion}"), silent)
    told = [one for one in report.warnings if "line break" in one]
    assert len(told) == warns and all(r"--prompt $'{prompt}\n" in one for one in told)


@pytest.mark.parametrize(("given", "rows", "kept"), [
    (None, 49, 0), (None, 50, 5), (None, 200, 20), (None, 9000, 500), ("auto", 60, 6), ("0", 200, 0), (0, 200, 0),
    ("12", 200, 12), ("10%", 30, 3), ("0.5", 10, 5), (0.01, 10, 1), ("2.5%", 200, 5), ("1", 60, 1),
])  # fmt: skip
def test_a_tenth_is_held_out_by_default_or_what_is_asked_for(given, rows, kept):
    spec = DataConfig(path="a", **({} if given is None else {"held_out": given}))
    assert spec.held_out_of(rows) == kept
    assert DataConfig.model_validate(spec.model_dump(mode="json")) == spec
    assert DataConfig(path="a", validation="b").held_out_of(rows) == 0


@pytest.mark.parametrize("given", ["100%", "0%", 1.5, -1, True, "x", "1,5", "-3", None, "nan", float("nan"), "%"])
def test_what_is_no_number_of_rows_is_refused(given):
    with pytest.raises(ConfigError, match="held_out"):
        read_data(["a"], [parse_setting(f"data.held_out={json.dumps(given)}")])


@pytest.mark.parametrize("rows", [49, 50, 130])
def test_the_report_holds_out_what_the_settings_say(tmp_path, rows):
    spec = DataConfig(path=written(tmp_path / "x.jsonl", lines(*(ROW | {"prompt": f"{n}"} for n in range(rows)))))
    report = count_only(spec, silent)
    assert report.validation_rows == spec.held_out_of(rows)
    assert (report.hold_out is not None and report.hold_out.by_default) == (report.overlap is not None) == (rows >= 50)
