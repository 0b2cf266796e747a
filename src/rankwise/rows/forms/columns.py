"""Columns of a row: their values filled into texts, columns with other names mapped to the known fields, and fields
that are known by two names or that a format requires.

A column text (config/data.py) receives the values as they are in the file: text unchanged, numbers as they are
written, a list of texts line by line, and an object as JSON. Any other value is refused with file and line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.config.data import Column, column_text
from rankwise.errors import DataError, did_you_mean, some
from rankwise.rows.forms.turns import is_json, text_of, texts_of, written_as_json
from rankwise.rows.text.example import Database, Example, Message

Row = dict[str, Any]


def from_columns(
    row: Row, prompt: str, completion: str, system: str | None, where: str, *, each: bool = False
) -> list[Example]:
    """The row as one example, or with `each` as one example for every answer in a list."""
    first = () if not (text := filled(system or "", row, where, "system")).strip() else (Message("system", text),)
    question = Message("user", _not_empty(filled(prompt, row, where, "prompt"), prompt, row, where, "prompt"))
    alone = column_text(completion).single_file
    listed = texts_of(row.get(alone), where, alone) if alone is not None else None
    answers = listed or (
        _not_empty(filled(completion, row, where, "completion"), completion, row, where, "completion"),
    )
    return answered((*first, question), answers, where, each=each)


def answered(
    context: tuple[Message, ...], answers: tuple[str, ...], where: str, *, each: bool, tools: tuple[Any, ...] = ()
) -> list[Example]:
    """Examples with the first answer, or one example for each answer. The other answers become alternatives."""
    return [
        Example(
            (*context, Message("assistant", answer)), where, tools,
            alternatives=tuple(other for other in answers if other != answer),
        )
        for answer in (answers if each else answers[:1])
    ]  # fmt: skip


def filled(text: str, row: Row, where: str, what: str) -> str:
    """Fill the values of the row into the text."""
    parts = column_text(text).parts
    unknown = [part.name for part in parts if isinstance(part, Column) and part.name not in row]
    if unknown:
        raise DataError(f"{where}: the {what} names {_missing(unknown[0], row)}{_only_names(unknown[0])}")
    return "".join(part if isinstance(part, str) else _as_text(row[part.name], where, part.name) for part in parts)


def _missing(name: str, row: Iterable[str]) -> str:
    return f'the column "{name}", but the row has only {listed_columns(row)}.{_near(name, row)}'


def _only_names(name: str) -> str:
    if not any(mark in name for mark in ".[:!"):
        return ""
    return " Braces contain a column name and nothing else; write {{ and }} for literal braces."


def listed_columns(row: Iterable[str]) -> str:
    return some(map(shown, row), 8) or "no columns"


def _near(name: str, row: Iterable[str]) -> str:
    """A hint with the nearest column name; a name that differs only in capitals comes first."""
    row = [key for key in row if key.isprintable()]
    same = next((key for key in row if key.casefold().strip() == name.casefold().strip()), None)
    return f' Did you mean "{same}"?' if same is not None else did_you_mean(name, row)


def _as_text(value: Any, where: str, name: str) -> str:
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return "\n".join(_as_text(one, where, name) for one in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, str):
        return text_of(value, where, f'column "{name}"', may_be_empty=True)
    if value is None:  # an empty cell of a table
        return ""
    if is_json(value):
        return written_as_json(value, where, f'column "{name}"')
    if isinstance(value, list) and any(isinstance(one, dict) and {"role", "from"} & set(one) for one in value):
        raise DataError(
            f'{where}: the column "{name}" holds turns of a conversation, which cannot be filled into a text. Leave '
            "out prompt and completion; then such rows are read as conversations."
        )
    raise DataError(f'{where}: the column "{name}" is {shown(value)}; a text, a number or a list of texts is expected.')


def _not_empty(text: str, pattern: str, row: Row, where: str, what: str) -> str:
    """Refuse a text that is empty or whose columns are all empty in this row."""
    named = column_text(pattern).columns
    if not text.strip() or (named and not any(_as_text(row[name], where, name).strip() for name in named)):
        empty = f" (nothing in {some(map(shown, named), 8)})" if named else ""
        raise DataError(f"{where}: the {what} is empty{empty}.")
    return text


def refuse_unfilled(system: str | None, row: Row, where: str) -> None:
    """Refuse a system message with a {column} in it if the column would not be filled in."""
    there = next((name for name in row if f"{{{name}}}" in (system or "")), None)
    if there is not None:
        raise DataError(
            f"{where}: the system message contains {{{there}}}, but columns are filled in only with --prompt and "
            "--completion (data.prompt, data.completion). Give both, or remove the braces from the system message."
        )


def renamed(row: Row, columns: Mapping[str, str], where: str) -> Row:
    """The row with the names of the known fields, as data.columns maps them."""
    if not columns:
        return row
    missing = next(((ours, theirs) for ours, theirs in columns.items() if theirs not in row), None)
    if missing is not None:
        ours, theirs = missing
        raise DataError(
            f"{where}: data.columns.{ours}={theirs} names a missing column; the row has "
            f"{listed_columns(row)}.{_near(theirs, row)}"
        )
    taken = set(columns.values())
    others = {key: value for key, value in row.items() if key not in taken and key not in columns}
    return others | {ours: row[theirs] for ours, theirs in columns.items()}


DATABASES = ("database", "tables")
SQLITE = (".db", ".sqlite", ".sqlite3")


def database_of(row: Row, folder: Path | None) -> Database | None:
    """What the row's SQL is run on: a SQLite file, relative to the folder, or statements that create its tables."""
    file, tables = (row.get(name) for name in DATABASES)
    if isinstance(file, str) and file.lower().endswith(SQLITE):
        return "database", str((folder or Path()) / file)
    if isinstance(tables, str) and re.search(r"\bcreate\s+table\b", tables, re.IGNORECASE):
        return "tables", tables
    return None


RIVALS = (
    ("messages", "conversations"), ("prompt", "question"), ("completion", "response", "answer"),
    ("output", "response"),
)  # fmt: skip
ABOUT, SYSTEM = ("input", "context"), ("system", "system_prompt")  # each pair is two names for the same field


def refuse_rivals(row: Row, where: str) -> None:
    for names in RIVALS:
        values = {name: row[name] for name in names if row.get(name)}
        if len({repr(value) for value in values.values()}) > 1:
            raise two_names(values, where)


def _texts(row: Row, where: str, names: tuple[str, ...]) -> dict[str, str]:
    there = (name for name in names if row.get(name) is not None)
    return {name: text_of(row[name], where, name, may_be_empty=True) for name in there}


def _not_blank(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text.strip()}


def two_names(values: Mapping[str, Any], where: str) -> DataError:
    both = " and ".join(f"{name} {shown(text)}" for name, text in values.items())
    return DataError(
        f"{where}: has {both}, two names for the same field; leave out one, or choose one with data.columns."
    )


def context_of(row: Row, where: str) -> str:
    """The context of the question, unchanged. The template decides whether a context of spaces counts."""
    texts = _texts(row, where, ABOUT)
    filled = _not_blank(texts)
    if len(filled) > 1:
        raise two_names(filled, where)
    return next(filter(None, (filled or texts).values()), "")


def system_of(row: Row, where: str) -> str:
    filled = _not_blank(_texts(row, where, SYSTEM))
    if len(set(filled.values())) > 1:
        raise two_names(filled, where)
    return next(iter(filled.values()), "")


def require(row: Row, where: str, form: str, *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        near = "".join(did_you_mean(key, row) for key in missing)
        raise DataError(
            f"{where}: no {' and no '.join(map(repr, missing))} in a row of the {form} format; "
            f"the row has {some(map(shown, row), 8) or 'no keys'}.{near}"
        )
