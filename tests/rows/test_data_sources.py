"""A source is read whole, or refused with every bad line named; no row is skipped in silence."""

from __future__ import annotations

import pytest

from rankwise.commands.data import count_only
from rankwise.config.data import DataConfig
from rankwise.errors import DataError, joined_problems
from rankwise.rows.sources import open_source
from rankwise.runs.records import silent

TOLD = 20
GOOD = b'{"prompt": "a", "completion": "b"}\n'


def read_whole(path, **settings):
    """All examples of a source in which nothing is wrong, and the form of its rows."""
    spec = DataConfig(path=str(path), **settings)
    (source,) = spec.all_sources
    reading = open_source(spec, source)
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    assert reading.skipped == []
    assert reading.rows == len(examples)
    return examples, ", ".join(part.format for part in reading.parts)


@pytest.fixture
def rows(tmp_path):
    """Write bytes to a file and read it as rows."""

    def read(content, **settings):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(content)
        return read_whole(file, **settings)

    return read


@pytest.fixture
def problem(tmp_path):
    """The message a file is refused with, its folder cut off."""

    def read(content, **settings):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(content)
        (message,) = count_only(DataConfig(path=str(file), **settings), silent).fatal
        return message.replace(f"{tmp_path}/", "")

    return read


def contents(examples):
    return [tuple(message.content for message in example.messages) for example in examples]


def test_blank_lines_carry_no_row_but_count_as_lines(rows):
    examples, _ = rows(b"\n" + GOOD + b"  \t\n\n" + GOOD)
    assert [example.where.rpartition(":")[2] for example in examples] == ["2", "5"]


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError) as caught:
        read_whole(tmp_path / "trian.jsonl")
    assert "trian.jsonl: there is no such file" in str(caught.value)
    assert 'Did you mean "train.jsonl"?' in str(caught.value)


def test_a_folder_without_rows_is_told_with_what_is_looked_for(tmp_path):
    (tmp_path / "README.md").write_text("# Rows")
    with pytest.raises(DataError, match=r"contains no file of rows \(\.jsonl, .*\.parquet"):
        read_whole(tmp_path)


LIST = b"[\n" + GOOD.strip() + b",\n\n " + GOOD.strip() + b", " + GOOD.strip() + b"\n]\n"


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \n"])
def test_one_json_list_is_read_element_by_element(rows, before):
    examples, form = rows(before + LIST)
    shift = before.count(b"\n")
    assert form == "prompt"
    assert contents(examples) == [("a", "b")] * 3
    assert [example.where.rpartition(":")[2] for example in examples] == [
        f"{line + shift} (element {number})" for number, line in enumerate((2, 4, 4), start=1)
    ]


DAMAGED = {
    "a cut list": ("rows.json", b"[\n" + GOOD + b",\n" + GOOD, ":5"),
    "an unclosed quote": ("rows.csv", b'prompt,completion\na,b\nc,"d\n', ":3"),
    "a TSV of no table": ("rows.tsv", b"prompt\tprompt\na\tb\n", ":1"),
    "damaged Parquet": ("rows.parquet", b"PAR1" + bytes(40), ""),
    "damaged Arrow": ("rows.arrow", b"ARROW1\0\0" + bytes(40), ""),
    "compressed rows": ("rows.jsonl", b"\x1f\x8b\x08\0" + bytes(60), ""),
    "settings": ("rows.json", b'{\n "model": "x"\n}\n', ":1"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("order", [1, -1])
def test_a_damaged_file_is_a_problem_beside_those_of_the_other_files(kind, order, tmp_path):
    # it was an error of its own: `data check --json` had none of its keys, and the other problems stayed hidden
    name, content, line = DAMAGED[kind]
    damaged, good, bad = tmp_path / name, tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    damaged.write_bytes(content)
    good.write_bytes(GOOD * 2)
    bad.write_bytes(GOOD + b"{\n")
    sources = [str(path) for path in (damaged, good, bad)][::order]
    stopped = count_only(DataConfig(sources=sources), silent)
    [problems] = stopped.fatal
    assert {problem.partition(": ")[0] for problem in problems.splitlines()} == {f"{damaged}{line}", f"{bad}:2"}
    skipping = count_only(DataConfig(sources=sources, on_bad_row="skip"), silent)
    assert (skipping.fatal, skipping.used, skipping.skipped, skipping.rows) == ((), 3, 2, 5)
    assert {skipped.where for skipped in skipping.skipped_rows} == {f"{damaged}{line}", f"{bad}:2"}
    assert skipping.rows == sum(file.rows for file in skipping.files)


def test_several_bad_rows_are_told_at_once(problem):
    told = problem(GOOD + b"{\n" + GOOD + b'{"prompt": 1, "completion": "b"}\n').splitlines()
    assert [line.partition(": ")[0] for line in told] == ["rows.jsonl:2", "rows.jsonl:4"]


def test_many_bad_rows_are_capped_and_the_same_problem_is_told_once(problem):
    told = problem(GOOD + b"{\n" * 300 + b'{"prompt": 1.5, "completion": "b"}\n' * 2).splitlines()
    assert [line.partition(": ")[0] for line in told] == ["rows.jsonl:2", "rows.jsonl:302", "rows.jsonl:303"]
    assert told[0].endswith(" The same in 299 more rows.")
    told = problem(GOOD + b"".join(b"{" + b"x" * n + b"\n{'\n" for n in range(TOLD))).splitlines()
    assert len(told) <= TOLD + 1


def test_rows_that_a_shown_line_stands_for_are_not_counted_again():
    """One line of 300 rows, and 20 lines of a row each, of which one is not shown."""
    letters = [f"rows.jsonl:{n}: is {chr(97 + n) * 9} here." for n in range(20)]
    told = joined_problems([f"rows.jsonl:{n}: is wrong." for n in range(300)] + letters).splitlines()
    assert len(told) == 21 and told[0].endswith("299 more rows.") and told[-1] == "and 1 more rows with problems."


def test_without_a_form_the_first_bad_row_is_the_only_one_told(problem):
    # every later row would be judged by a form that nobody knows yet
    assert problem(b'{"question": "a"}\n' * 3).count("rows.jsonl:") == 1


def test_a_form_that_was_asked_for_is_not_guessed(rows, problem):
    both = b'{"messages": [], "prompt": "a", "completion": "b"}\n'
    assert rows(both, format="prompt")[1] == "prompt"
    assert "messages" in problem(both)
    assert "is in the prompt format, but its file is in the messages format" in problem(GOOD, format="messages")
    assert "no 'messages'" in problem(b'{"message": []}\n', format="messages")


def test_the_system_setting_reaches_every_row(rows):
    examples, _ = rows(GOOD * 2, system="Be brief.")
    assert contents(examples) == [("Be brief.", "a", "b")] * 2
