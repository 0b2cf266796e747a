"""Answers with a form, compared by what they mean: numbers, JSON by field, calls of tools, and SQL by its result.

Each comparison gives the row [earned, possible] of one item, which evaluation/metrics.py adds up.

    JSON    numbers by their value, so 1 is 1.0 and is not true; a field is a path of names, and a list is one value
    calls   a multiset of (function, arguments), so that several calls may come in any order
    SQL     the result of the query on the database of its row (sql_child.py)

The figures of a field: whether its value is exactly right, F1 of the members of its lists as multisets, and whether its
number is near, all over the items whose reference has it; how often the answer lacks it there, and has it elsewhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing, suppress
from decimal import Decimal, InvalidOperation
from functools import partial
from threading import Timer
from typing import Any

from rankwise.errors import ResourceError
from rankwise.evaluation import sql_child
from rankwise.rows.text.example import Database, calls_in
from rankwise.system.foreign_json import loads

Row = list[float]
"""What is stored of an item."""
NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")
_UNIT = re.compile(r"[^\S\n]*([^\W\d_]+|[%°$€£]\w?)")
NEAR = 0.01
"""How far a number of a field may be from the reference's, as a share of it, where the task says nothing else."""
OTHER_FIELDS = "(other fields)"
"""Stands for all fields that no reference has."""
Figures = dict[str, dict[str, list[Row]]]
"""For each field and figure, the rows of the items that count for it."""


def number(answer: str, target: str, tolerance: float = 0.0, units: bool = False) -> Row:
    """Compare the numbers after ####, or else the last numbers, as in GSM8K. `tolerance` is a share of the reference;
    with `units`, the word after the number must be the reference's, where that has one."""
    given, wanted = number_and_unit(answer), number_and_unit(target)
    if given is None or wanted is None:
        return [0.0, 1.0]
    same_unit = not units or wanted[1] in (None, given[1])
    return [float(same_unit and _is_near(given[0], wanted[0], tolerance)), 1.0]


def _is_near(value: Decimal, target: Decimal, tolerance: float) -> bool:
    return value == target or abs(value - target) <= Decimal(str(tolerance)) * abs(target)


def number_and_unit(text: str) -> tuple[Decimal, str | None] | None:
    _, marked, tail = text.rpartition("####")
    text = tail if marked else text
    matched = list(NUMBER.finditer(text))
    if not matched:
        return None
    found = matched[0 if marked else -1]
    unit = _UNIT.match(text, found.end())
    try:
        return Decimal(found[0].replace(",", "")), unit and unit[1]
    except InvalidOperation:
        return None


def json_fields(answer: str, target: str) -> Row:
    """Compute the share of fields, of both objects together, that are equal in both; nested fields by their path. Each
    item has weight one, however many fields an answer invents."""
    leaves = _leaves(loads(target))
    try:
        matched = _leaves(loads(_unfenced(answer)))
    except (ValueError, RecursionError):
        return [0.0, 1.0]
    equal = sum(matched.get(path, _NOTHING) == value for path, value in leaves.items())
    return [equal / len(leaves | matched), 1.0]


_NOTHING = object()


FieldPath = tuple[str | int, ...]
"""Field names and list indices; the field "0" differs from the index 0."""


def _leaves(value: Any, path: FieldPath = ()) -> dict[FieldPath, Any]:
    if isinstance(value, dict) and value:
        return {deep: leaf for name, part in value.items() for deep, leaf in _leaves(part, (*path, name)).items()}
    if isinstance(value, list) and value:
        return {deep: leaf for at, part in enumerate(value) for deep, leaf in _leaves(part, (*path, at)).items()}
    return {path: (isinstance(value, bool), value)}  # so that True differs from 1


def _unfenced(answer: str, language: str = "json") -> str:
    """Remove a code fence (```) around JSON."""
    fenced = re.fullmatch(rf"\s*```(?:{language})?\s*\n(.*)\n```\s*", answer, re.DOTALL | re.IGNORECASE)
    return fenced[1] if fenced else answer


def json_valid(answer: str, target: str) -> Row:
    return [float(_parsed(answer) is not _NOTHING), 1.0]


def json_exact(answer: str, target: str) -> Row:
    given, wanted = _parsed(answer), _parsed(target)
    return [float(given is not _NOTHING and _frozen(given) == _frozen(wanted)), 1.0]


def _parsed(text: str) -> Any:
    """The JSON value of an answer; _NOTHING where it is none, or one too deep to be compared."""
    try:
        value = loads(_unfenced(text))
        _frozen(value)
    except (ValueError, RecursionError):
        return _NOTHING
    return value


def _frozen(value: Any) -> Hashable:
    """A JSON value that can be counted, equal where its names and values are."""
    if isinstance(value, dict):
        return "object", frozenset((name, _frozen(part)) for name, part in value.items())
    if isinstance(value, list):
        return "list", tuple(map(_frozen, value))
    return isinstance(value, bool), value


def field_figures(answers: Sequence[str], references: Sequence[Sequence[str]], tolerance: float | None) -> Figures:
    """The rows of each field, those with the most rows first. Of several references the one that fits best counts."""
    pairs = [
        (_fields(_parsed(answer)), _fields(_parsed(max(several, key=partial(json_fields, answer)))))
        for answer, several in zip(answers, references, strict=True)
    ]
    near = NEAR if tolerance is None else tolerance
    known = Counter(path for _, wanted in pairs for path in wanted)
    found: Figures = {path: {} for path, _ in known.most_common()}
    for given, wanted in pairs:
        for path in known:
            _add(found, path, _figures(given.get(path, _NOTHING), wanted.get(path, _NOTHING), near))
        _add(found, OTHER_FIELDS, {"extra": [float(bool(given.keys() - known.keys())), 1.0]})
    if not any(row[0] for row in found[OTHER_FIELDS]["extra"]):
        del found[OTHER_FIELDS]
    return found


def _add(figures: Figures, path: str, rows: Mapping[str, Row]) -> None:
    for figure, row in rows.items():
        figures.setdefault(path, {}).setdefault(figure, []).append(row)


def _figures(value: Any, target: Any, tolerance: float) -> dict[str, Row]:
    """The figures of one field of one answer; _NOTHING stands for a field that is not there."""
    there = value is not _NOTHING
    if target is _NOTHING:
        return {"extra": [float(there), 1.0]}
    right = there and _frozen(value) == _frozen(target)
    found = {"exact": [float(right), 1.0], "missing": [float(not there), 1.0]}
    if isinstance(target, list):
        mine, theirs = (Counter(map(_frozen, one if isinstance(one, list) else ())) for one in (value, target))
        found["f1"] = [float((mine & theirs).total()), float(mine.total()), float(theirs.total())]
    elif _is_number(target):
        near = _is_number(value) and _is_near(Decimal(str(value)), Decimal(str(target)), tolerance)
        found["near"] = [float(near), 1.0]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _fields(value: Any, path: str = "") -> dict[str, Any]:
    """The values of an object by their paths; a list is one value."""
    if isinstance(value, dict) and (value or not path):
        return {deep: leaf for name, part in value.items()
                for deep, leaf in _fields(part, f"{path}.{name}" if path else name).items()}  # fmt: skip
    return {} if value is _NOTHING else {path or "(the whole)": value}


def called(text: str) -> Counter[tuple[str, Hashable]]:
    return Counter((call.name, _frozen(call.arguments)) for call in calls_in(text)[1])


def names_called(text: str) -> Counter[str]:
    return Counter(call.name for call in calls_in(text)[1])


def tool_call(answer: str, target: str) -> Row:
    """Whether all calls are right, in any order; where no call is wanted, whether there is none."""
    return [float(called(answer) == called(target)), 1.0]


def tool_function(answer: str, target: str) -> Row:
    return [float(names_called(answer) == names_called(target)), 1.0]


def tool_arguments(answer: str, target: str) -> Row:
    """Count the calls with the right arguments among those of the right functions."""
    functions = names_called(answer) & names_called(target)
    return [float((called(answer) & called(target)).total()), float(functions.total())]


def tool_missing(answer: str, target: str) -> Row:
    wanted = names_called(target)
    return [float((wanted - names_called(answer)).total()), float(wanted.total())]


def tool_needless(answer: str, target: str) -> Row:
    return tool_missing(target, answer)


class QueryProcess:
    """A process that compares the results of queries. One that a query held up is ended, and begun again."""

    _process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def judged(self, answer: str, reference: str, database: Database) -> bool | str:
        """Whether both have the same result, or why the reference has none."""
        queries = {"answer": _unfenced(answer, "sql"), "reference": _unfenced(reference, "sql")}
        request = json.dumps(dict([database]) | queries).encode() + b"\n"
        if self._process is not None and self._process.poll() is not None:  # it was ended after its last reply
            self.close()
        self._process = process = self._process or _started()
        assert process.stdin is not None and process.stdout is not None
        timer = Timer(sql_child.SECONDS, process.kill)
        timer.start()
        with suppress(BrokenPipeError):  # a process that has ended gives no reply
            process.stdin.write(request)
            process.stdin.flush()
        line = process.stdout.readline()
        timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        self.close()
        return f"it takes more than {sql_child.SECONDS:g} s or too much memory" if answer == reference else False


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-S", "-E", "-P", sql_child.__file__]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            creationflags=0x200 * (sys.platform == "win32"),
        )  # fmt: skip
    except OSError as error:
        raise ResourceError(
            f"queries run in a process of their own, which cannot be started ({error.strerror}). Leave out the score "
            "sql."
        ) from None


def sql_rows(
    answers: Sequence[str], references: Sequence[Sequence[str]], databases: Sequence[Database | None]
) -> list[Row]:
    """Whether the result of each answer is that of a reference."""
    with closing(QueryProcess()) as process:
        return [
            [float(database is not None and any(process.judged(answer, one, database) is True for one in several)), 1.0]
            for answer, several, database in zip(answers, references, databases, strict=True)
        ]


def problem_of_references(scores: Sequence[str], references: Sequence[tuple[str, str, Database | None]]) -> str | None:
    """Why these scores cannot score all references, each with its place and its database; None if they can."""
    tools = [score for score in scores if score.startswith("tool_")]
    if tools and not any(called(text) for _, text, _ in references):
        return (
            f"{tools[0]}: no reference answer calls a tool, as a JSON object with a name and arguments. Leave out this "
            "score."
        )
    if "sql" not in scores:
        return None
    with closing(QueryProcess()) as process:
        for where, query, database in references:
            if database is None:
                return f"{where}: has neither a database nor tables, which sql runs the queries on."
            if (why := process.judged(query, query, database)) is not True:
                return f"{where}: the reference query has no result ({why}): {query[:60]!r}."
    return None


def fitting_scores(references: Sequence[str], databases: Sequence[Database | None]) -> tuple[str, tuple[str, ...]]:
    """The scores that fit these answers, besides the loss, and the reason; none if the answers have no form."""
    placed = [("", *pair) for pair in zip(references, databases, strict=True)]
    if all(databases) and problem_of_references(("sql",), placed) is None:
        return "every row has a database", ("sql",)
    if any(map(called, references)):
        tools = ("tool_call", "tool_function", "tool_arguments", "tool_missing", "tool_needless")
        return "reference answers call tools", tools
    if all(isinstance(_parsed(one), dict) for one in references):
        return "all reference answers are JSON objects", ("json", "json_exact", "json_valid")
    return "", ()
