"""A constraint on answers: read from a file, a flag, a request or a class, inferred from rows, and kept with a run.

    schema      a JSON Schema: the answer is one JSON value that is valid by it
    choices     one of some texts
    regex       a regular expression in Rust's notation, which the whole answer matches
    grammar     a grammar in Lark's notation

An inferred schema has the types and fields that occur in the answers; a field is required if every answer has it. A
field with few values may be an enumeration, which is proposed with its counts; it binds nobody, because a value that a
few hundred rows happen not to contain may still be right.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from rankwise.config.base import JsonObject, listed
from rankwise.config.data import INFER, OF_ANSWERS, Constrained, Constraint, DataConfig
from rankwise.constraints.matcher import fits, problem_of
from rankwise.constraints.schema import MOST_CHARACTERS, json_in, read_schema, schema_problem, subschemas
from rankwise.errors import ConfigError, DataError, one_line
from rankwise.runs.row_facts import Enumeration
from rankwise.system.extras import need_extra

MOST_VALUES, FEWEST_ROWS = 12, 20
"""An enumeration has at most so many values, and is proposed from so many answers on."""
LINK, MOST_LINKS = re.compile(r"\$ref|\\u0024ref|^\s*\??\w+(?:\[[^\]\n]*\])?\s*:", re.MULTILINE), 500
"""References of a schema and rules of a grammar: the engine follows a chain of them by recursion, and would crash."""
JSON_OBJECT = Constraint(kind="schema", text='{"type": "object"}')
SPACES = re.compile(r'"(?:[^"\\]|\\.)*"|\s+')


def constraint_of(kind: str, text: str, where: str) -> Constraint:
    """A constraint of a text that came from anywhere. ConfigError where no answer can be written by it."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError([f"{where}: the {kind} has more than {MOST_CHARACTERS:,} characters."])
    links = len(LINK.findall(text)) if kind in READ_FROM_FILES else 0
    if links > MOST_LINKS:
        raise ConfigError(
            [f"{where}: the {kind} has {links:,} references and rules; at most {MOST_LINKS} are followed."]
        )
    text = CHECKS[kind](text, where)
    constraint = Constraint(kind=kind, text=text)  # pyright: ignore[reportArgumentType]
    if (problem := problem_of(constraint)) is not None:
        raise ConfigError([f"{where}: no answer can be held to this {kind}: {problem.removesuffix('.')}."])
    return constraint


def _choices(text: str, where: str) -> str:
    """A JSON list of texts, or texts between commas."""
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [one.strip() for one in text.split(",")]
    except ValueError as error:
        raise ConfigError([f"{where}: the choices are not a JSON list ({error})."]) from None
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise ConfigError([f"{where}: choices are texts, none of them empty; write a,b,c or a JSON list of texts."])
    return json.dumps(list(dict.fromkeys(found)), ensure_ascii=False)


def _as_it_is(text: str, where: str) -> str:
    if not text.strip():
        raise ConfigError([f"{where}: it is empty."])
    return text


CHECKS: dict[str, Callable[[str, str], str]] = {
    "schema": read_schema, "choices": _choices, "regex": _as_it_is, "grammar": _as_it_is,
}  # fmt: skip
READ_FROM_FILES = ("schema", "grammar")
"""Kinds that are read from a file."""
Names = tuple[str, ...]
"""The way to a part of a value; [] for any member of a list."""
MOST_NAMES = 100
MISFITS = {
    "choices": "is none of the choices", "regex": "does not match the regular expression",
    "grammar": "does not follow the grammar",
}  # fmt: skip


def constraint_from(unconstrained: bool = False, **by_kind: str | None) -> Constrained:
    """The constraint that flags ask for, by kind; the run's own where they ask for none. ConfigError for several."""
    asked = {kind: value for kind, value in by_kind.items() if value is not None}
    if len(asked) + unconstrained > 1:
        flags = [f"--{kind}" for kind in asked] + ["--unconstrained"] * unconstrained
        raise ConfigError([f"{listed(flags, 'and')} both say what an answer may be; give one of them."])
    for kind, value in asked.items():
        if value == INFER and kind == "schema":
            raise ConfigError(["--schema infer reads rows: use it with data check or train, or give a file here."])
        is_file = kind in READ_FROM_FILES
        return constraint_of(kind, _content(value) if is_file else value, value if is_file else f"--{kind}")
    return "none" if unconstrained else "own"


def _content(file: str) -> str:
    try:
        with Path(file).open(encoding="utf-8") as opened:
            return opened.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})."]) from None


def answers_in(data: DataConfig) -> Callable[[], AnswerForms] | None:
    """Begins to look at the answers of rows; None where these settings hold them to nothing."""
    if not data.changed(*OF_ANSWERS):
        return None
    if data.answer_schema == INFER:
        return partial(AnswerForms, None)
    choices = json.dumps(data.answer_choices) if data.answer_choices else None
    found = constraint_from(
        schema=data.answer_schema, choices=choices, regex=data.answer_regex, grammar=data.answer_grammar
    )
    assert isinstance(found, Constraint), "one of the four is given"
    return partial(AnswerForms, found)


def constraint_given(value: Any) -> Constraint:
    """The constraint of Python's `schema=`: a schema, or a class of pydantic."""
    schema = value.model_json_schema() if hasattr(value, "model_json_schema") else value
    if not isinstance(schema, dict):
        raise ConfigError([f"schema is a {type(value).__name__}; give a dict, or a class of pydantic."])
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([f"schema: it cannot be written as JSON ({one_line(str(error))})."]) from None
    return constraint_of("schema", text, "schema")


def problem_with(constraint: Constraint, answer: str) -> str | None:
    """What an answer breaks; None where it keeps to the constraint."""
    if constraint.kind == "schema":
        return schema_problem(constraint.text, answer)
    return None if fits(constraint, answer) else f"{MISFITS[constraint.kind]}: {one_line(answer)!r}"


@dataclass
class AnswerForms:
    """What the answers of rows are held to, or have in common, one after the other."""

    known: Constraint | None
    """What was given; None where the schema is inferred."""
    builder: Any = None
    answers: int = 0
    spaces: int = 1
    """The longest white space between two tokens of JSON."""
    before: dict[Names, Counter[tuple[str, str]]] = field(default_factory=dict)
    """How often a name stands before another one in an object."""
    values: dict[Names, Counter[str]] = field(default_factory=dict)
    """How often each text stands in a field, while they are few."""

    def problem(self, answer: str | None) -> str | None:
        """What is wrong with an answer, which counts where its schema is inferred."""
        if answer is None:
            return None
        self.answers += 1
        problem = problem_with(self.known, answer) if self.known is not None else self._add(answer)
        if problem is None:
            between = (one for one in SPACES.findall(answer) if not one.startswith('"'))
            self.spaces = max(self.spaces, *map(len, between), 0)
        return problem

    def _add(self, answer: str) -> str | None:
        if self.builder is None:
            need_extra("genson", f"data.answer_schema {INFER}", "schema", ConfigError)
            from genson import SchemaBuilder

            self.builder = SchemaBuilder()
        try:
            value = json_in(answer)
        except (ValueError, RecursionError):
            return f"is not JSON: {one_line(answer)!r}"
        self.builder.add_object(value)
        for path, pair in _pairs(value):
            self.before.setdefault(path, Counter())[pair] += 1
        for path, text in _texts(value):
            counts = self.values.setdefault(path, Counter())
            if len(counts) <= MOST_VALUES:
                counts[text] += 1
        return None

    @property
    def constraint(self) -> Constraint | None:
        """What was given, or the schema of the answers; None where there was none."""
        if self.known is not None:
            return self.known.model_copy(update={"spaces": min(self.spaces, 1000)})
        if self.builder is None:
            return None
        text = json.dumps(_in_order(self.builder.to_schema(), self.before), ensure_ascii=False)
        return Constraint(kind="schema", text=text, spaces=min(self.spaces, 1000))

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of the data report. DataError where no row has an answer."""
        if not self.answers:
            raise DataError("no row has an answer in text, so data.answer_… holds none to anything; leave it out.")
        return {"constraint": self.constraint, "enumerations": self.enumerations()}

    def enumerations(self) -> tuple[Enumeration, ...]:
        """Fields that have few values, each of them more than once."""
        return tuple(
            Enumeration(path=".".join(path), counts=dict(counts.most_common()))
            for path, counts in self.values.items()
            if len(counts) <= MOST_VALUES and counts.total() >= FEWEST_ROWS and min(counts.values()) > 1
        )


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    return (
        value.items() if isinstance(value, dict) else [("[]", one) for one in value] if isinstance(value, list) else ()
    )


def _texts(value: Any, path: Names = ()) -> Iterable[tuple[Names, str]]:
    if isinstance(value, str):
        yield path, value
    for name, part in _parts(value):
        yield from _texts(part, (*path, name))


def _pairs(value: Any, path: Names = ()) -> Iterable[tuple[Names, tuple[str, str]]]:
    """Which names stand before which in each object."""
    if isinstance(value, dict):
        yield from ((path, pair) for pair in combinations(list(value)[:MOST_NAMES], 2))
    for name, part in _parts(value):
        yield from _pairs(part, (*path, name))


def _in_order(schema: JsonObject, before: Mapping[Names, Counter[tuple[str, str]]], path: Names = ()) -> JsonObject:
    """The schema with fields in the order in which most objects have them, without its address."""
    schema.pop("$schema", None)
    if "properties" in schema:
        names, pairs = list(schema["properties"]), before.get(path, Counter())
        schema["properties"] = {name: schema["properties"][name] for name in _sorted(names, pairs)}
    if "required" in schema:
        schema["required"] = [name for name in schema["properties"] if name in schema["required"]]
    for place, inside in subschemas(schema):
        kind, _, name = place.partition("/")
        own = (name,) if kind == "properties" else ("[]",) if kind == "items" else ()
        _in_order(inside, before, (*path, *own))
    return schema


def _sorted(names: list[str], before: Counter[tuple[str, str]]) -> Iterable[str]:
    while names:
        first = min(names, key=lambda name: sum(before[other, name] > before[name, other] for other in names))
        names.remove(first)
        yield first
