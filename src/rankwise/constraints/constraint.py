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
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

from rankwise.config.base import JsonObject, listed
from rankwise.config.data import INFER, OF_ANSWERS, Constrained, Constraint, DataConfig
from rankwise.constraints.matcher import Vocabulary, engine, follows, json_options, of_bytes, problem_of
from rankwise.constraints.schema import MOST_CHARACTERS, closed, json_in, read_schema, schema_problem, subschemas
from rankwise.errors import ConfigError, DataError, one_line
from rankwise.runs.row_facts import Enumeration
from rankwise.system.extras import need_extra

MOST_VALUES, FEWEST_ROWS = 12, 20
"""An enumeration has at most so many values, and is proposed from so many answers on."""
LINK, MOST_LINKS = re.compile(r"\$ref|\\u0024ref|^\s*\??\w+(?:\[[^\]\n]*\])?\s*:", re.MULTILINE), 500
"""References of a schema and rules of a grammar: the engine follows a chain of them by recursion, and would crash."""
JSON_OBJECT = Constraint(kind="schema", text='{"type": "object"}')
Names = tuple[str, ...]
"""The way to a part of a value; [] for any member of a list."""
MOST_NAMES, MOST_PAIRS = 100, 10_000
"""Names of an object whose order is looked at, and pairs of names that are counted."""
SPACES = re.compile(r'"(?:[^"\\]|\\.)*"|\s+')


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


def _grammar_of_schema(constraint: Constraint) -> str:
    options = json_options(constraint.spaces)
    return engine().grammar_from_json_schema(closed(json.loads(constraint.text)), overrides=options)


def _grammar_of_choices(constraint: Constraint) -> str:
    choices = " | ".join(map(json.dumps, json.loads(constraint.text)))
    return engine().grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")


def _misfit(constraint: Constraint, answer: str) -> str | None:
    fits = follows(grammar_of(constraint), answer)
    return None if fits else f"does not fit the {constraint.kind}: {one_line(answer)!r}"


@dataclass(frozen=True)
class ConstraintKind:
    """`check` is given a text and the place that it came from, and returns it as it is kept; `grammar` is what
    llguidance follows; `problem` is what is wrong with an answer."""

    check: Callable[[str, str], str]
    grammar: Callable[[Constraint], str]
    problem: Callable[[Constraint, str], str | None] = _misfit
    is_file: bool = False
    """Whether a flag names a file with the text."""


KINDS = {
    "schema": ConstraintKind(read_schema, _grammar_of_schema, schema_problem, is_file=True),
    "choices": ConstraintKind(_choices, _grammar_of_choices),
    "regex": ConstraintKind(_as_it_is, lambda constraint: engine().grammar_from_regex(constraint.text)),
    "grammar": ConstraintKind(_as_it_is, lambda constraint: engine().grammar_from_lark(constraint.text), is_file=True),
}


def constraint_of(kind: str, text: str, where: str) -> Constraint:
    """A constraint of a text that came from anywhere. ConfigError where no answer can be written by it."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError([f"{where}: the {kind} has more than {MOST_CHARACTERS:,} characters."])
    if (links := len(LINK.findall(text)) if KINDS[kind].is_file else 0) > MOST_LINKS:
        raise ConfigError(
            [f"{where}: the {kind} has {links:,} references and rules; at most {MOST_LINKS} are followed."]
        )
    try:
        constraint = Constraint(kind=kind, text=KINDS[kind].check(text, where))  # pyright: ignore[reportArgumentType]
        checked_grammar(constraint, of_bytes(), f"{where}: ")
    except RecursionError:
        raise ConfigError([f"{where}: the {kind} is nested too deeply."]) from None
    return constraint


def checked_grammar(constraint: Constraint, vocabulary: Vocabulary, where: str = "") -> str:
    """The constraint as a grammar of llguidance. ConfigError where no answer of these tokens can follow it."""
    try:
        grammar = grammar_of(constraint)
        problem = problem_of(grammar, vocabulary)
    except ValueError as error:
        grammar, problem = "", one_line(str(error), 200)
    if problem is not None:
        raise ConfigError([f"{where}no answer can be held to this {constraint.kind}: {problem.removesuffix('.')}."])
    return grammar


@lru_cache(maxsize=32)
def grammar_of(constraint: Constraint) -> str:
    return KINDS[constraint.kind].grammar(constraint)


def constraint_from(unconstrained: bool = False, **by_kind: str | None) -> Constrained:
    """The constraint that flags ask for, by kind; the run's own where they ask for none. ConfigError for several."""
    asked = {kind: value for kind, value in by_kind.items() if value is not None}
    if len(asked) + unconstrained > 1:
        flags = [f"--{kind}" for kind in asked] + ["--unconstrained"] * unconstrained
        raise ConfigError([f"{listed(flags, 'and')} both say what an answer may be; give one of them."])
    if not asked:
        return "none" if unconstrained else "own"
    ((kind, value),) = asked.items()
    if not KINDS[kind].is_file:
        return constraint_of(kind, value, f"--{kind}")
    if value == INFER:
        raise ConfigError([f"--{kind} infer reads rows: use it with data check or train, or give a file here."])
    return constraint_of(kind, _content(value), value)


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
    return KINDS[constraint.kind].problem(constraint, answer)


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
            self.spaces = min(1000, max(self.spaces, *map(len, between), 0))
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
        for path, part in _walk(value):
            if isinstance(part, str):
                _count(self.values.setdefault(path, Counter()), part, MOST_VALUES + 1)
            elif isinstance(part, dict):
                pairs = self.before.setdefault(path, Counter())
                for pair in combinations(list(part)[:MOST_NAMES], 2):
                    _count(pairs, pair, MOST_PAIRS)
        return None

    @property
    def constraint(self) -> Constraint | None:
        """What was given, or the schema of the answers; None where there was none."""
        if self.known is not None:
            return self.known.model_copy(update={"spaces": self.spaces})
        if self.builder is None:
            return None
        text = json.dumps(_in_order(self.builder.to_schema(), self.before), ensure_ascii=False)
        return Constraint(kind="schema", text=text, spaces=self.spaces)

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


def _walk(value: Any, path: Names = ()) -> Iterable[tuple[Names, Any]]:
    """A value and all its parts, each with the way to it."""
    yield path, value
    listed = [("[]", one) for one in value] if isinstance(value, list) else ()
    for name, part in value.items() if isinstance(value, dict) else listed:
        yield from _walk(part, (*path, name))


def _count(counts: Counter[Any], what: Any, most: int) -> None:
    """Count, of so many different things at most."""
    if what in counts or len(counts) < most:
        counts[what] += 1


def _in_order(schema: JsonObject, before: Mapping[Names, Counter[tuple[str, str]]], path: Names = ()) -> JsonObject:
    """The schema with fields in the order in which most objects have them, without its address."""
    schema.pop("$schema", None)
    if "properties" in schema:
        names, pairs = list(schema["properties"]), before.get(path, Counter())
        ordered = _sorted(names, pairs) if len(names) <= MOST_NAMES else names
        schema["properties"] = {name: schema["properties"][name] for name in ordered}
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
