"""Any columns become a question and its answer by texts with {columns} in them; what cannot be written so is refused.

Answers that are lists of texts have alternatives, and where no form fits a row, the error says what to type.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.command import printed, rankwise
from kit.shell import typed_in_bash
from rankwise.config.data import DataConfig, column_text
from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError, DataError
from rankwise.rows.forms.columns import from_columns
from rankwise.rows.forms.formats import find_format, parse_row
from rankwise.rows.sources import open_source
from rankwise.runs.directory import ClaimedRun
from rankwise.runs.own_files import read_json

WHERE = "rows.jsonl:7"
NAMES = st.text(
    st.characters(exclude_characters="{}a", exclude_categories=("Cs", "Cc")), min_size=1, max_size=6
).filter(str.strip)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def texts(examples):
    return [tuple(message.content for message in example.messages) for example in examples]


def read(name, **settings):
    """The texts of each row, and what was left out."""
    spec = DataConfig(path=name, **settings)
    reading = open_source(spec, spec.all_sources[0])
    rows = [row for chunk in reading.chunks() for row in chunk]
    return [texts(row) for row in rows], [why for _, why in reading.skipped]


def refused(row, prompt="{q}", completion="{a}", system=None):
    with pytest.raises(DataError) as caught:
        from_columns(row, prompt, completion, system, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: ")
    return str(caught.value)


# The braces


@given(st.lists(st.one_of(NAMES.map(lambda name: ("column", name)), st.text(max_size=5).map(lambda t: ("text", t)))))
def test_a_text_of_columns_is_its_parts_one_after_another(parts):
    pattern = "".join(
        f"{{{said}}}" if kind == "column" else said.replace("{", "{{").replace("}", "}}") for kind, said in parts
    )
    row = {said: f"<{said}>" for kind, said in parts if kind == "column"}
    (example,) = from_columns(row | {"a": "b"}, f"Q{pattern}{{a}}", "{a}", None, WHERE)
    assert example.messages[0].content == "Q" + "".join(row.get(s, s) if k == "column" else s for k, s in parts) + "b"


@pytest.mark.parametrize("text", ["{", "}", "a {b", "a} b", "{a{b}}", "{}", "{ }", "{{a}", "{a}}"])
def test_braces_that_do_not_close_are_refused_with_the_setting(text):
    with pytest.raises(ValueError, match="brace"):
        column_text(text)
    with pytest.raises(ConfigError) as caught:
        DataConfig(path="a", prompt=text, completion="{a}")
    assert 'setting "prompt" is' in str(caught.value) and "brace" in str(caught.value)


@pytest.mark.parametrize("name", ["q.real", "q[0]", "q!r", "q:>9", "q.__class__"])
def test_braces_hold_a_name_and_nothing_is_computed_of_it(name):
    message = refused({"q": "x", "a": "y"}, prompt=f"{{{name}}}")
    assert f'"{name}"' in message and "nothing else" in message
    assert texts(from_columns({name: "x", "a": "y"}, f"{{{name}}}", "{a}", None, WHERE)) == [("x", "y")]


def test_the_braces_of_a_row_are_text():
    assert texts(from_columns({"q": "{a} {{ }", "a": "{q}"}, "{q}", "{a}", None, WHERE)) == [("{a} {{ }", "{q}")]


# What stands in them


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" x\n", " x\n"), (3, "3"), (-0.5, "-0.5"), (4.0, "4.0"), (1e-7, "0.0000001"), (True, "true"), (False, "false"),
        (["a", "b"], "a\nb"), (["a", 2], "a\n2"),
    ],
)  # fmt: skip
def test_values_are_written_as_the_file_has_them(value, text):
    assert texts(from_columns({"q": value, "a": "y"}, "Is {q}?", "{a}", None, WHERE)) == [(f"Is {text}?", "y")]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["a", {"x": 1}], "{'x': 1}"), ({"x": b"1"}, "JSON"), (float("nan"), "nan"), ("a\0b", "NUL"),
        ([{"role": "user", "content": "hi"}], "turns of a conversation"),
    ],
)  # fmt: skip
def test_values_that_are_no_text_are_refused_by_column(value, said):
    message = refused({"q": value, "a": "y"})
    assert '"q"' in message and said in message


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"q": "", "a": "y"}, "{q}", "{a}"), ({"q": " ", "p": "", "a": "y"}, "Say: {q}{p}", "{a}"),
        ({"q": "x", "a": " "}, "{q}", "{a}"), ({"q": "x", "a": ""}, "{q}", "It is {a}."),
    ],
)  # fmt: skip
def test_a_text_that_says_nothing_of_its_row_is_refused(row, prompt, completion):
    assert "is empty" in refused(row, prompt, completion)
    assert texts(from_columns({"q": "x", "p": "", "a": "y"}, "{q}{p}", "{a}", " {p}", WHERE)) == [("x", "y")]


@pytest.mark.parametrize(("name", "near"), [("dialog", "dialogue"), ("Dialogue", "dialogue"), ("SUM", "sum")])
def test_a_column_that_is_not_there_is_told_with_its_near_miss(name, near):
    message = refused({"dialogue": "x", "sum": "y"}, prompt=f"{{{name}}}", completion="{sum}")
    assert f'"{name}"' in message and f'Did you mean "{near}"?' in message and "'dialogue', 'sum'" in message


# The settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": "{a}"}, "completion is not given"),
        ({"completion": "{a}"}, "prompt is not given"),
        ({"prompt": "{a}", "completion": "b"}, "names no column"),
        ({"prompt": " ", "completion": "{b}"}, "it is empty"),
        ({"prompt": "{a}", "completion": "{b}", "columns": {"prompt": "a"}}, "cannot be combined with columns"),
        ({"prompt": "{a}", "completion": "{b}", "format": "alpaca"}, "cannot be combined with format"),
        ({"prompt": "{a}", "completion": "{b}", "labels": ["x"]}, "cannot be combined with labels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, said):
    with pytest.raises(ConfigError) as caught:
        DataConfig(path="a", **values)
    assert said in str(caught.value)


def test_each_source_has_its_own_texts_and_system_message():
    write("one.jsonl", [{"q": "x", "a": "y", "t": "maths"}])
    write("two.jsonl", [{"body": "u", "head": "v"}])
    spec = DataConfig(
        system="Be kind.",
        sources=[
            {"path": "one.jsonl", "prompt": "{q}", "completion": "{a}", "system": "About {t}."},
            {"path": "two.jsonl", "prompt": "Shorten: {body}", "completion": "{head}"},
        ],
    )
    found = [texts(row) for s in spec.all_sources for chunk in open_source(spec, s).chunks() for row in chunk]
    assert found == [[("About maths.", "x", "y")], [("Be kind.", "Shorten: u", "v")]]


def test_rows_to_measure_with_are_made_of_the_same_columns_unless_they_say_of_which():
    how = {"prompt": "{q}", "completion": "{a}"}
    assert DataConfig(path="a", validation="b", **how).measured_source.prompt == "{q}"
    assert DataConfig(path="a", validation="b", columns={"prompt": "q"}).measured_source.columns == {"prompt": "q"}
    assert DataConfig(sources=[{"path": "a", **how}] * 2, validation="b").measured_source.completion == "{a}"
    own = {"path": "b", "prompt": "{x}", "completion": "{y}"}
    assert DataConfig(path="a", validation=own, **how).measured_source.prompt == "{x}"
    assert DataConfig(path="a", validation={"path": "b", "format": "alpaca"}, **how).measured_source.prompt is None
    assert DataConfig(sources=[{"path": "a", **how}, "c"], validation="b").measured_source.prompt is None
    assert DataConfig(path="a", **how).measured_source is None


def test_a_run_keeps_its_texts():
    run = ClaimedRun(Path("r"))
    run.folder.mkdir()
    data = {"path": "a", "prompt": "Q: {q}", "completion": "{a}", "system": "On {t}."}
    run.begin(Experiment(model="m", run="r", data=data).model_dump(mode="json"))
    assert read_json(run.folder / "config.json", Experiment).data == DataConfig(**data)


def test_a_system_message_with_a_column_is_refused_where_nothing_would_fill_it():
    write("rows.jsonl", [{"question": "x", "answer": "y", "topic": "z"}])
    rows, problems = read("rows.jsonl", system="About {topic}.")
    assert rows == [] and "{topic}" in problems[0] and "--prompt" in problems[0]
    assert read("rows.jsonl", system='Answer as {"x": 1}.')[1] == []


def test_rows_of_messages_are_not_asked_by_a_text():
    write("rows.jsonl", [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}])
    _, problems = read("rows.jsonl", prompt="{messages}", completion="{messages}")
    assert "turns of a conversation" in problems[0] and "Leave out prompt" in problems[0]


# Lists of answers


@pytest.mark.parametrize(
    "row",
    [
        {"question": "How many?", "answer": ["Nine", "9", "Nine"]},
        {"question": "How many?", "answers": {"text": ["Nine", "9"], "answer_start": [3, 8]}},
        {"question": "How many?", "answers": [{"text": "Nine", "answer_start": 3}, {"text": "9"}]},
        {"question": "How many?", "answer": "Nine", "answers": ["9", "Nine"]},
        {"instruction": "How many?", "output": ["Nine", "9"]},
        {"prompt": [{"role": "user", "content": "How many?"}], "completion": ["Nine", "9"]},
    ],
)
def test_of_a_list_of_answers_the_first_is_learned_and_the_others_are_alternatives(row):
    form = find_format(row, WHERE)
    (example,) = parse_row(row, form, WHERE)
    assert texts([example]) == [("How many?", "Nine")] and example.alternatives == ("9",)
    each = parse_row(row, form, WHERE, alternatives="each", system="Be brief.")
    assert texts(each) == [("Be brief.", "How many?", "Nine"), ("Be brief.", "How many?", "9")]
    assert [one.alternatives for one in each] == [("9",), ("Nine",)]


def test_a_column_of_answers_has_alternatives_too_where_it_is_the_whole_completion():
    row = {"q": "x", "a": ["y", "z"]}
    (example,) = from_columns(row, "{q}", "{a}", None, WHERE)
    assert (texts([example]), example.alternatives) == ([("x", "y")], ("z",))
    assert len(from_columns(row, "{q}", "{a}", None, WHERE, each=True)) == 2
    (example,) = from_columns(row, "{q}", "It is {a}", None, WHERE, each=True)
    assert (texts([example]), example.alternatives) == ([("x", "It is y\nz")], ())


@pytest.mark.parametrize("answer", [[], ["x", ""], ["x", None], {"text": []}])
def test_a_list_of_answers_that_is_none_is_refused(answer):
    for row in ({"question": "q", "answer": answer}, {"question": "q", "answer": "x", "answers": answer}):
        if row["answer"] == "x" and not answer:
            continue
        with pytest.raises(DataError, match=re.escape(WHERE)):
            parse_row(row, "prompt", WHERE)


# Forms that people have


@pytest.mark.parametrize(
    ("row", "asked", "answered"),
    [
        ({"sentence": "Fine.", "label": "1"}, "Fine.", "1"),
        ({"index": 3, "sentence1": "A.", "sentence2": "B.", "label": "no"}, "A.\n\nB.", "no"),
        ({"question": "A?", "sentence": "B.", "label": 0}, "A?\n\nB.", "0"),
        ({"premise": "A.", "hypothesis": "B.", "label": 2}, "A.\n\nB.", "2"),
        ({"text": "A.", "sentence": "B.", "label": 2}, "A.", "2"),
    ],
)
def test_the_names_that_glue_has_are_known(row, asked, answered):
    assert find_format(row, WHERE) == "classification"
    (example,) = parse_row(row, "classification", WHERE)
    assert (example.prompt_text, example.messages[-1].content) == (asked, answered)


PROPOSED = [
    ({"question": "How many users are there?", "sql": "SELECT count(*) FROM users"}, "{question}", "{sql}"),
    ({"id": "7-a", "dialogue": "A: hi there you\nB: hello", "summary": "They greet."}, "{dialogue}", "{summary}"),
    ({"review": "I liked it a lot.", "stars": 5}, "{review}", "{stars}"),
    ({"Frage": "Wie viele Nutzer gibt es?", "Antwort": "Es gibt neun."}, "{Frage}", "{Antwort}"),
    ({"title": "A day out", "url": "x://y", "body": "We went there by bus."}, "{body}", "{title}"),
    ({"en": "dog", "de": "Hund"}, "{en}", "{de}"),
    ({"it's": "one two three", "label": 1}, "{it's}", "{label}"),
    ({"a $PATH": "one two three", "label": 1}, "{a $PATH}", "{label}"),
    ({"Frage": "Wie viele gibt es?", "Abfrage": "SELECT a FROM b", "Betrag": "3,5"}, "{Frage}", "{Abfrage}"),
    ({"in": "one two three", "out": "four five six", "when": "1 Jan 2024", "ok": True}, "{in}", "{out}"),
    ({"in": "one two three", "out": "four five six", "url": "https://a.b/c", "thread_id": "abc"}, "{in}", "{out}"),
    ({"headline": "one two three", "is_sarcastic": "0"}, "{headline}", "{is_sarcastic}"),
    ({"Asked\nhere": "one two three", "it's\u200b": "four five six"}, "{Asked\nhere}", "{it's\u200b}"),
    ({"a": "one two three", "b {c}": "x y z", "d": "four five six"}, "{a}", "{d}"),
    ({"email": "Please send two maps.", "fields": '{"count": 2, "item": "maps"}'}, "{email}", "{fields}"),
    ({"fields": {"count": 2, "item": "maps"}, "email": "Please send two maps."}, "{email}", "{fields}"),
]


@pytest.mark.parametrize(("row", "prompt", "completion"), PROPOSED)
def test_where_no_form_fits_the_error_says_what_to_type_and_it_works(row, prompt, completion):
    with pytest.raises(DataError) as caught:
        find_format(row, WHERE)
    message = str(caught.value)
    assert "a guess" in message and all(repr(name) in message for name in row)
    typed = typed_in_bash(re.search(r"is (--prompt .*? --completion \S.*?)(?:, or --set|\. Known)", message)[1])
    assert typed == ["--prompt", prompt, "--completion", completion]
    assert from_columns(row, prompt, completion, None, WHERE)


@pytest.mark.parametrize("row", [{}, {"text1": "alone here it is"}, {"x": None, "y": 3}, {"a{b": "x y z", "c": "d"}])
def test_nothing_is_proposed_where_it_would_be_no_guess(row):
    with pytest.raises(DataError) as caught:
        find_format(row, WHERE)
    assert "--prompt" not in str(caught.value)


def test_where_no_column_looks_like_an_answer_the_error_says_how_to_name_one():
    with pytest.raises(DataError) as caught:
        find_format({"post": "one two three", "ups": 3, "downs": 4}, WHERE)
    assert '--prompt "{post}" --completion "{COLUMN}", where COLUMN is' in str(caught.value)


@pytest.mark.parametrize("answer", [3, 2.5, True])
def test_a_number_for_an_answer_is_refused_with_options_that_work(answer):
    row = {"question": "Which of these?", "choices": ["one a", "two b"], "subject": "sums", "answer": answer}
    with pytest.raises(DataError, match=r"the answer is .*; text is expected") as caught:
        parse_row(row, "prompt", WHERE)
    words = typed_in_bash(re.search(r"add (--prompt .*)\.$", str(caught.value))[1])
    assert words == ["--prompt", "{question} {choices}", "--completion", "{answer}"]
    (example,) = from_columns(row, words[1], words[3], None, WHERE)
    assert example.prompt_text == "Which of these? one a\ntwo b"
    assert example.messages[-1].content == ("true" if answer is True else str(answer))


def test_a_column_that_is_null_is_an_empty_cell():
    row = {"passage": None, "question": "Who?", "answer": "He."}
    (example,) = from_columns(row, "{passage}{question}", "{answer}", None, WHERE)
    assert example.prompt_text == "Who?"
    with pytest.raises(DataError, match="the completion is empty"):
        from_columns(row, "{question}", "{passage}", None, WHERE)


def test_columns_by_other_names_say_how_they_are_written():
    with pytest.raises(DataError) as caught:
        open_source(spec := DataConfig(path="x", columns={"question_": "q"}), spec.all_sources[0])
    assert "--set data.columns.prompt=question" in str(caught.value)
    write("rows.jsonl", [{"question": "x", "sql": "y"}])
    _, (problem,) = read("rows.jsonl", columns={"completion": "SQL"})
    assert "data.columns.completion=SQL" in problem and 'Did you mean "sql"?' in problem


# On the command line


@pytest.mark.parametrize(
    ("rows", "words", "seen"),
    [
        ([{"question": "Q?", "sql": "SELECT 1"}], ["--prompt", "Write SQL: {question}", "--completion", "{sql}"],
         ["Write SQL: Q?", "SELECT 1"]),
        ([{"review": "Good.", "stars": 5}], ["--prompt", "{review}", "--completion", "{stars}", "--system", "Rate!"],
         ["Rate!", "Good.", "5"]),
        ([{"sentence": "Good.", "label": "pos"}], [], ["Good.", "pos"]),
    ],
)  # fmt: skip
def test_check_and_preview_read_by_the_texts_that_are_given(rows, words, seen, tiny_folder):
    file = write("rows.jsonl", rows * 2)
    assert printed("data", "check", file, "--model", tiny_folder, *words)["used"] == 2
    shown = rankwise("data", "preview", file, "--model", tiny_folder, *words)
    assert shown.exit_code == 0 and all(text in shown.stdout for text in seen), shown.output


def test_a_mistake_in_a_text_is_told_with_its_flag(tiny_folder):
    file = write("rows.jsonl", [{"question": "Q?", "sql": "SELECT 1"}])
    for words, said in (
        (["--prompt", "{question", "--completion", "{sql}"], "--prompt: setting"),
        (["--prompt", "{question}"], "completion is not given"),
        (["--prompt", "{qestion}", "--completion", "{sql}"], 'Did you mean "question"?'),
    ):
        for command in (["data", "check", file], ["train", "--data", file, "--run", "r"]):
            result = rankwise(*command, "--model", tiny_folder, *words)
            assert result.exit_code == 2 and said in result.output, result.output
