"""Answer choices of a row, from a list or a cell of a table, and task texts with {columns} filled in."""

from __future__ import annotations

import re
from typing import Any

from rankwise.config.base import shown
from rankwise.config.tasks import TaskConfig
from rankwise.errors import DataError, did_you_mean, some
from rankwise.system.strict_json import loads

COLUMN = re.compile(r"\{([^{}]+)\}")


def written(pattern: str, row: dict[str, Any], where: str) -> str:
    def filled(match: re.Match[str]) -> str:
        if match[1] not in row:
            raise DataError(
                f'{where}: has no column "{match[1]}".{did_you_mean(match[1], list(row))} Its columns are '
                f"{some(map(shown, row), 8)}."
            )
        value = row[match[1]]
        if value is None or isinstance(value, dict | list):
            raise DataError(f'{where}: "{match[1]}" is {shown(value)}, but must be a text or a number.')
        return str(value)

    return COLUMN.sub(filled, pattern)


def choices_of(task: TaskConfig, row: dict[str, Any], where: str) -> tuple[str, ...]:
    if isinstance(task.choices, tuple):
        return task.choices
    column = column_of_choices(task)
    if column is None:
        return _parted(task.choices or "", written(task.choices or "", row, where), where)
    if column not in row:
        if task.choices is None:
            return ()
        raise DataError(
            f'{where}: has no column "{column}" of choices.{did_you_mean(column, list(row))} Its columns are '
            f"{some(map(shown, row), 8)}."
        )
    value = row[column]["text"] if isinstance(row[column], dict) and "text" in row[column] else row[column]
    if isinstance(value, str):
        value = _listed(value) or (_parted(task.choices, value, where) if _in_braces(task.choices) else value)
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(one, str) for one in value):
        raise DataError(
            f'{where}: "{column}" is {shown(value)}, but must be a list of two or more texts. In a CSV cell, write '
            f'JSON, ["first", "second"]; or write first; second and set choices: "{{{column}}}" in the task.'
        )
    return tuple(value)


def _in_braces(choices: object) -> bool:
    return isinstance(choices, str) and bool(COLUMN.search(choices))


def column_of_choices(task: TaskConfig) -> str | None:
    """Return the column that holds the choices, named with or without braces; None for a text made of several
    columns."""
    if not _in_braces(task.choices):
        return str(task.choices or "choices")
    alone = COLUMN.fullmatch(str(task.choices))
    return alone[1] if alone else None


def _parted(pattern: object, text: str, where: str) -> tuple[str, ...]:
    """Split choices at semicolons and drop duplicates."""
    parts = (part.strip() for part in text.split(";"))
    several = tuple(dict.fromkeys(part for part in parts if part))
    if len(several) < 2:
        raise DataError(
            f'{where}: "{pattern}" gives {some(map(shown, several)) or "none"}; two or more choices '
            "separated by semicolons are needed."
        )
    return several


def _listed(text: str) -> list[Any] | None:
    """Parse a cell that holds a JSON list; None if it does not."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
