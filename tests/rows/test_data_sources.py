"""A source is read whole, or refused with every bad line named; no row is skipped in silence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.errors import DataError, joined_problems
from rankwise.rows.sources import open_source
from rankwise.rows.text.example import BREAK
from rankwise.rows.writing import count_only
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


@pytest.fixture
def damage(tmp_path):
    """What is told of a file in which nothing can be found again, its folder cut off; none of its rows is kept."""

    def read(content, **settings):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(content)
        for mode in ("skip", "stop"):
            data_report = count_only(DataConfig(path=str(file), on_bad_row=mode, **settings), silent)
            assert (data_report.used, data_report.skipped, data_report.fatal) == (
                0,
                1,
                (data_report.skipped_rows[0].why,),
            )
        return data_report.fatal[0].replace(f"{tmp_path}/", "")

    return read


def contents(examples):
    return [tuple(message.content for message in example.messages) for example in examples]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=["\0", BREAK]), min_size=1).filter(
    str.strip
)


@settings(max_examples=draws(40), deadline=None)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), ascii_only=st.booleans())
def test_any_text_that_json_can_hold_is_read_back_to_the_letter(tmp_path_factory, pairs, ascii_only):
    # U+2028 and U+0085 inside a value once counted as line ends, in readers that split text and not bytes
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": asked, "completion": said}, ensure_ascii=ascii_only) for asked, said in pairs]
    file.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    examples, form = read_whole(file)
    assert form == "prompt"
    assert contents(examples) == pairs
    assert [example.where for example in examples] == [f"{file}:{n}" for n in range(1, len(pairs) + 1)]


def test_blank_lines_carry_no_row_but_count_as_lines(rows):
    examples, _ = rows(b"\n" + GOOD + b"  \t\n\n" + GOOD)
    assert [example.where.rpartition(":")[2] for example in examples] == ["2", "5"]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(rows):
    plain, _ = rows(GOOD * 3)
    marked, _ = rows(b"\xef\xbb\xbf" + (GOOD * 3).replace(b"\n", b"\r\n"))
    assert marked == plain


def test_a_last_line_without_an_end_is_read(rows):
    assert rows(GOOD + GOOD.strip())[0] == rows(GOOD * 2)[0]


def test_a_byte_order_mark_inside_the_file_is_not_swallowed(problem):
    assert problem(GOOD + b"\xef\xbb\xbf" + GOOD).startswith("rows.jsonl:2: ")


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError) as caught:
        read_whole(tmp_path / "trian.jsonl")
    assert "trian.jsonl: there is no such file" in str(caught.value)
    assert 'Did you mean "train.jsonl"?' in str(caught.value)


def test_a_file_missing_in_a_missing_folder_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no such file\.$"):
        read_whole(tmp_path / "nowhere" / "rows.jsonl")


def test_a_folder_without_rows_is_told_with_what_is_looked_for(tmp_path):
    (tmp_path / "README.md").write_text("# Rows")
    with pytest.raises(DataError, match=r"contains no file of rows \(\.jsonl, .*\.parquet"):
        read_whole(tmp_path)


def test_a_folder_is_the_rows_of_its_files_in_their_order(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(GOOD.replace(b'"a"', b'"second"'))
    (tmp_path / "a.jsonl").write_bytes(GOOD.replace(b'"a"', b'"first"'))
    (tmp_path / "README.md").write_text("# Rows")
    (tmp_path / ".hidden.jsonl").write_bytes(b"{")
    examples, form = read_whole(tmp_path)
    assert (contents(examples), form) == ([("first", "b"), ("second", "b")], "prompt, prompt")
    assert [example.where for example in examples] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1"]


def test_a_name_too_long_for_any_file_is_told():
    # the system's own error ended in a traceback
    with pytest.raises(DataError):
        read_whole("x" * 300)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("form", ["auto", "prompt"])
def test_a_file_without_rows_is_refused(problem, content, form):
    assert problem(content, format=form) == "rows.jsonl: has no rows."


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b'{"prompt": "a", "completion": b}\n', ["is not JSON", "column 31"]),
        (b'{"prompt": "a"\n', ["is not JSON"]),
        (b"[1, 2]\n", ["holds a list", "a row is one JSON object"]),
        (b'"text"\n', ["holds a str", "a row is one JSON object"]),
        (b"null\n", ["holds a NoneType", "a row is one JSON object"]),
        (b'{"prompt": "\xff", "completion": "b"}\n', ["not UTF-8", "byte 12"]),
        (b'{"prompt": "\xed\xa0\x80", "completion": "b"}\n', ["not UTF-8", "byte 12"]),
        (b'{"prompt": "\\ud800", "completion": "b"}\n', ["the prompt", "lone surrogate", "at 0"]),
        (b'{"prompt": ' + b"[" * 100_000 + b"\n", ["nested too deeply"]),
        (b'{"prompt": ' + b'{"a":' * 100_000 + b"\n", ["nested too deeply"]),
        (b'{"prompt": ' + b"9" * 5000 + b', "completion": "b"}\n', ["number too long"]),
        (
            b'{"instruction": "a", "output": "b"}\n',
            ["is in the alpaca format", "its file is in the prompt format", "'instruction', 'output'"],
        ),
        (b'{"prompt": "a", "completion": ""}\n', ["the completion is empty"]),
    ],
)
def test_one_bad_line_among_good_ones_is_named(problem, line, wanted):
    message = problem(GOOD + line + GOOD)
    assert message.startswith("rows.jsonl:2: ")
    assert message.count("rows.jsonl:") == 1, "only the bad line is told"
    assert all(part in message for part in wanted), message
    assert len(message) < 400


def test_a_surrogate_pair_is_one_whole_character(rows):
    examples, _ = rows(b'{"prompt": "\\ud83d\\ude00", "completion": "b"}\n')
    assert contents(examples) == [("\U0001f600", "b")]


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


def test_one_bad_row_of_a_json_list_is_named(problem):
    told = problem(b"[" + GOOD.strip() + b",\n3,\n" + GOOD.strip() + b',\n{"prompt": "a"}]').splitlines()
    assert [line.partition(": ")[0] for line in told] == [
        "rows.jsonl:2 (element 2)", "rows.jsonl:4 (element 4)",
    ]  # fmt: skip
    assert "holds a int" in told[0] and "no 'completion'" in told[1]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"[\n" + GOOD, ["rows.jsonl:3: ", "ends in the middle", "closing ]"]),
        (b"[" + GOOD + GOOD + b"]", ["rows.jsonl:2: is not JSON", "where a comma or the end is expected"]),
        pytest.param(
            LIST + GOOD,
            ["rows.jsonl:6: is not JSON", "where a comma or the end is expected"],
        ),
        (b"[" + GOOD + b",\n{]", ["rows.jsonl:3: is not JSON", "column 2"]),
        (b"[" + GOOD + b',\n"\xff"]', ["rows.jsonl:3: is not UTF-8"]),
        (b"[" + GOOD + b"," + b"[" * 100_000, ["rows.jsonl:2 (element 2): ", "nested too deeply"]),
    ],
)
def test_a_damaged_json_list_is_told_with_its_line(damage, content, wanted):
    message = damage(content)
    assert all(part in message for part in wanted), message
    assert len(message) < 400


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


def test_an_empty_json_list_has_no_rows(problem):
    assert problem(b"[ ]") == "rows.jsonl: has no rows."


def test_a_row_that_is_to_be_skipped_is_counted_and_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"{\n" + GOOD + b'{"prompt": "a"}\n')
    data_report = count_only(DataConfig(path=str(file), on_bad_row="skip"), silent)
    assert (data_report.rows, data_report.used, data_report.skipped, data_report.fatal) == (4, 2, 2, ())
    assert [skipped.where for skipped in data_report.skipped_rows] == [f"{file}:2", f"{file}:4"]
    assert all(skipped.why.startswith(skipped.where) for skipped in data_report.skipped_rows)


def test_rows_that_are_all_bad_are_no_data_even_if_bad_ones_are_to_be_skipped(problem):
    assert problem(b"{\n" * 3, on_bad_row="skip").count("rows.jsonl:") == 3


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
