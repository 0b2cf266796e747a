"""Constraints are checked where they are given, say what an answer breaks, and are inferred from answers."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kit.sampling import draws
from rankwise.commands.data import count_only
from rankwise.config.data import Constraint, DataConfig
from rankwise.constraints.constraint import (
    AnswerForms,
    answers_in,
    constraint_from,
    constraint_given,
    constraint_of,
    grammar_of,
    problem_with,
)
from rankwise.constraints.matcher import follows
from rankwise.constraints.schema import MOST_CHARACTERS, closed
from rankwise.errors import ConfigError
from rankwise.runs.records import silent

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}  # fmt: skip
BAD = {
    "no JSON": ("schema", "{'type': 'object'}", "is not JSON"),
    "a list": ("schema", "[1, 2]", "a JSON object"),
    "a key twice": ("schema", '{"type": "string", "type": "object"}', "is not JSON"),
    "an unknown type": ("schema", '{"type": "strin"}', "at type"),
    "a keyword with a typing error": ("schema", '{"type": "object", "propertes": {}}', '"properties"'),
    "one inside": ("schema", '{"properties": {"a": {"minimun": 1}}}', "at /properties/a"),
    "a remote reference": ("schema", '{"$ref": "https://example.org/a.json"}', "example.org"),
    "a file's reference": ("schema", '{"$ref": "file:///etc/passwd"}', "file:///etc/passwd"),
    "a reference to nothing": ("schema", '{"$ref": "#/$defs/none"}', "/$defs/none"),
    "an unknown dialect": ("schema", '{"$schema": "https://example.org/dialect"}', "example.org"),
    "bounds the wrong way round": ("schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "greater than"),
    "two types at once": ("schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}', "incompatible"),
    "a type and other values": ("schema", '{"type": "string", "enum": [1, 2]}', "incompatible"),
    "a required field that cannot be": (
        "schema", '{"type": "object", "properties": {"a": false}, "required": ["a"]}', "unsatisfiable"),
    "what the engine cannot follow": ("schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "an unknown format": ("schema", '{"type": "string", "format": "moon-phase"}', "moon-phase"),
    "a chain of references": (
        "schema", json.dumps({"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1900)}}), "references and"
    ),
    "a chain of rules": ("grammar", 'start: r0\n' + "".join(f"r{n}: r{n + 1}\n" for n in range(600)), "rules"),
    "no number": ("schema", '{"const": NaN}', "is not JSON"),
    "infinity": ("schema", '{"const": 1e400}', "is not JSON"),
    "what the engine alone reads": ("schema", '{"x-guidance": {"lenient": true}}', "x-guidance"),
    "a multiple of millions": (
        "schema", '{"type": "integer", "allOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 83}]}',
        "716,539 remainders",
    ),
    "multiples one in the other": (
        "schema", '{"multipleOf": 9973, "type": "integer", "anyOf": [{"multipleOf": 9967}]}', "remainders"
    ),
    "thirty multiples": (
        "schema", json.dumps({"properties": {f"p{n}": {"multipleOf": 99_991 - n} for n in range(30)}}), "2,999,295 rem"
    ),
    "each n has another": (
        "schema", json.dumps({"type": "array", "items": {"$ref": "#/$defs/t"}, "minItems": 1, "$defs": {
            "t": {"type": "object", "properties": {"n": {"$ref": "#/$defs/t"}}, "required": ["n"]},
        }}), "each value of #/$defs/t needs"),
    "a number of 65 bits": ("schema", '{"type": "integer", "maximum": 18446744073709551616}', "the number 184467"),
    "a pattern that is none": ("schema", '{"type": "string", "pattern": "("}', "pattern"),
    "nested too deeply": ("schema", '{"items":' * 600 + "{}" + "}" * 600, "schema"),
    "five megabytes": ("schema", json.dumps({"enum": ["x" * 5_000_000]}), "characters"),
    "no regular expression": ("regex", "(a", "unclosed group"),
    "a regular expression that looks around": ("regex", "(?=a)b", "look-around"),
    "one that explodes": ("regex", "(a?){5000}a{5000}", "regex"),
    "an empty one": ("regex", " ", "empty"),
    "no choices": ("choices", " , ", "none of them empty"),
    "choices that are no texts": ("choices", "[1, 2]", "texts"),
    "half a list": ("choices", '["a", ', "not a JSON list"),
    "a grammar that is none": ("grammar", "start: (", "grammar"),
    "a rule that is missing": ("grammar", "start: foo", "foo"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_constraint_is_told_in_one_sentence_with_its_place(name):
    kind, text, reason = BAD[name]
    with pytest.raises(ConfigError) as told:
        constraint_of(kind, text, "here.json")
    (problem,) = told.value.problems
    assert problem.startswith("here.json: ") and reason in problem and len(problem) < 400
    assert "\n" not in problem and problem.endswith((".", "?"))


def test_several_flags_or_a_missing_file_are_told(tmp_path):
    for flags in ({"regex": "a", "choices": "a,b"}, {"regex": "a", "unconstrained": True}):
        with pytest.raises(ConfigError, match="give one of them"):
            constraint_from(**flags)
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        constraint_from(schema=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="both say what an answer may be"):
        DataConfig(path="rows.jsonl", answer_regex="a", answer_choices=("a", "b"))
    assert constraint_from() == "own" and constraint_from(unconstrained=True) == "none"


def test_every_source_gives_the_same_constraint(tmp_path):
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))

    class Person(BaseModel):
        name: str

    of_rows = answers_in(DataConfig(path="rows", answer_schema=str(file)))
    assert of_rows is not None and of_rows().constraint == constraint_from(schema=str(file))
    assert constraint_from(schema=str(file)) == constraint_given(PERSON) == Constraint(
        kind="schema", text=json.dumps(PERSON)
    )  # fmt: skip
    assert problem_with(constraint_given(Person), '{"name": "Ann"}') is None
    assert answers_in(DataConfig(path="rows")) is None
    for value in ("person", {"const": {1, 2}}, {"const": float("nan")}):
        with pytest.raises(ConfigError, match=r"^schema"):
            constraint_given(value)


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("schema", json.dumps(PERSON), '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": -3}'),
        ("schema", json.dumps(PERSON), '{"name": "Ann", "other": 1}', "Ann"),
        ("schema", '{"type": "string", "format": "date"}', '"2024-02-29"', '"2023-02-30"'),
        ("choices", "yes,no, it depends", "it depends", "it"),
        ("choices", '["a\\"b", "\u65b0\\n"]', "\u65b0\n", "\u65b0"),
        ("schema", '{"type": "string"}', '"Caf\\u00e9 \\u00a3"', "Caf"),
        ("schema", '{"type": "number"}', "-1.5", "7E37072870728"),
        ("schema", '{"type": "object"}', '{"a": 1}', '{"a": NaN}'),
        ("choices", json.dumps([f"choice {n}" for n in range(5000)]), "choice 4999", "choice"),
        ("regex", "[a-z]{2,3}", "abc", "abcd"),
        ("grammar", 'start: "a" b*\nb: "b" | "c"', "abcb", "ba"),
    ],
)
def test_an_answer_keeps_to_a_constraint_or_what_it_breaks_is_said(kind, text, right, wrong):
    constraint = constraint_of(kind, text, "here")
    assert problem_with(constraint, right) is None
    assert problem_with(constraint, wrong)


def test_letters_may_be_written_as_python_escapes_them():
    constraint = constraint_of("schema", '{"type": "string"}', "here")
    assert all(
        follows(grammar_of(constraint), json.dumps(text)) for text in ("Caf\u00e9 \u00a3", "\U0001f600", "\u65b0")
    )
    assert not follows(grammar_of(constraint), '"\\ud800"')


def test_what_a_schema_breaks_has_its_path():
    text = json.dumps({"properties": {"items": {"type": "array", "items": {"properties": {"n": {"type": "integer"}}}}}})
    problem = problem_with(Constraint(kind="schema", text=text), '{"items": [{"n": 1}, {"n": "x"}]}')
    assert problem is not None and "items.1.n: " in problem


def test_objects_are_written_with_the_properties_that_they_list():
    inner = {"type": "object", "properties": {"x": {}}}
    schema = {
        "properties": {"a": inner, "b": {"items": inner}, "c": {"anyOf": [inner, {"type": "null"}]}},
        "$defs": {"d": inner, "e": inner | {"additionalProperties": True}, "f": {"type": "object"}},
        "enum": [{"properties": {}}],
    }  # fmt: skip
    made = closed(schema)
    found = [made, made["properties"]["a"], made["properties"]["b"]["items"], made["properties"]["c"]["anyOf"][0]]
    assert all(one["additionalProperties"] is False for one in [*found, made["$defs"]["d"]])
    assert made["$defs"]["e"]["additionalProperties"] is True and made["$defs"]["f"] == {"type": "object"}
    assert made["enum"] == schema["enum"] and "additionalProperties" not in inner


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]}, '{"a": 1, "b": 2}'),
        ({"$defs": {"B": {"properties": {"a": {}}}}, "$ref": "#/$defs/B", "properties": {"b": {}}}, '{"a": 1, "b": 2}'),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}, "required": ["b"]}]}, '{"a": 1, "b": 2}'),
        ({"properties": {"a": {}}, "required": ["a", "b"], "type": "object"}, '{"a": 1, "b": 2}'),
        ({"properties": {"a": {}}, "patternProperties": {"^b": {}}, "type": "object"}, '{"a": 1, "b": 2}'),
    ],
)
def test_objects_that_several_schemas_describe_are_not_closed(schema, answer):
    assert closed(schema) == schema
    constraint = constraint_of("schema", json.dumps(schema), "here")
    assert problem_with(constraint, answer) is None and follows(grammar_of(constraint), answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab\u65b0", max_size=3),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from("abc"), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=draws(60))
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4), min_size=1, max_size=8))
def test_every_answer_is_valid_by_the_schema_that_is_inferred_from_all(values):
    forms = AnswerForms(None)
    assert not any(forms.problem(json.dumps(value)) for value in values)
    constraint = forms.constraint
    assert constraint is not None
    assert all(jsonschema_rs.is_valid(json.loads(constraint.text), value) for value in values)
    assert all(problem_with(constraint, json.dumps(value)) is None for value in values)


def test_an_inferred_schema_has_types_required_fields_and_the_white_space_of_the_rows():
    rows = [{"kind": "abc"[n % 3], "id": f"n{n}", "size": n / 2, **({"note": "x"} if n % 2 else {})} for n in range(24)]
    forms = AnswerForms(None)
    for row in rows:
        assert forms.problem(json.dumps(row, indent=2)) is None
    assert forms.problem("a sentence") == "is not JSON: 'a sentence'"
    assert forms.problem(None) is None
    constraint = forms.constraint
    assert constraint is not None and constraint.spaces == 3
    schema = json.loads(constraint.text)
    assert schema["required"] == ["kind", "id", "size"] and list(schema["properties"])[:3] == schema["required"]
    assert schema["properties"]["size"] == {"type": "number"} and "enum" not in constraint.text
    (few,) = forms.enumerations()
    assert (few.path, few.counts) == ("kind", {"a": 8, "b": 8, "c": 8})


def test_fields_are_in_the_order_of_the_rows_whichever_of_them_comes_first():
    forms, names = AnswerForms(None), ["name", "kind", "rating", "area", "near"]
    for left_out in ({"rating", "kind"}, {"name", "area"}, {"near"}, set(), {"kind", "near"}):
        part = {name: "x" for name in names if name not in left_out}
        assert forms.problem(json.dumps(part | {"parts": [part]})) is None
    constraint = forms.constraint
    assert constraint is not None
    schema = json.loads(constraint.text)
    assert list(schema["properties"]) == [*names, "parts"]
    assert list(schema["properties"]["parts"]["items"]["properties"]) == names


def test_names_of_thousands_of_rows_are_no_more_work_than_their_number():
    forms = AnswerForms(None)
    for number in range(60):
        assert forms.problem(json.dumps({f"id {number * 20 + at}": at for at in range(20)})) is None
    constraint = forms.constraint
    assert constraint is not None and len(json.loads(constraint.text)["properties"]) == 1200
    assert sum(map(len, forms.before.values())) <= 10_000


def test_the_largest_texts_that_are_read():
    assert constraint_of("regex", f"a{{{1}}}" + "b" * 100, "here").kind == "regex"
    with pytest.raises(ConfigError, match=f"more than {MOST_CHARACTERS:,}"):
        constraint_of("regex", "b" * (MOST_CHARACTERS + 1), "here")


def test_every_answer_of_a_row_keeps_to_the_constraint(tmp_path):
    file = tmp_path / "rows.jsonl"
    answers = [["yes", "no"], ["yes", "perhaps"], ["no"]]
    file.write_text("\n".join(json.dumps({"input": "Is it?", "output": several}) for several in answers))
    config = DataConfig(path=str(file), alternatives="each", answer_choices=("yes", "no"))
    report = count_only(config, silent)
    assert (report.rows, report.used) == (3, 2)
