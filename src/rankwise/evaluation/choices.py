"""A task's texts with {columns} in them, and where a row's choices stand: in a list, or in a text of a table's cell."""

from __future__ import annotations

import re
from typing import Any

from rankwise.config.base import shown
from rankwise.config.tasks import TaskConfig
from rankwise.data.strict_json import loads
from rankwise.errors import DataError, did_you_mean, some

COLUMN = re.compile(r"\{([^{}]+)\}")


def written(pattern: str, row: dict[str, Any], where: str) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in row:
            raise DataError(
                f'{where}: has no column "{found[1]}".{did_you_mean(found[1], list(row))} Its columns are '
                f"{some(map(shown, row), 8)}."
            )
        held = row[found[1]]
        if held is None or isinstance(held, dict | list):
            raise DataError(f'{where}: "{found[1]}" holds {shown(held)}, and a text or a number is wanted.')
        return str(held)

    return COLUMN.sub(value, pattern)


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
    held = row[column]["text"] if isinstance(row[column], dict) and "text" in row[column] else row[column]
    if isinstance(held, str):
        held = _listed(held) or (_parted(task.choices, held, where) if _in_braces(task.choices) else held)
    if not isinstance(held, list | tuple) or len(held) < 2 or not all(isinstance(one, str) for one in held):
        raise DataError(
            f'{where}: "{column}" holds {shown(held)}; a list of two or more texts is wanted. In a CSV cell write '
            f'JSON, ["first", "second"]; or write first; second and set choices: "{{{column}}}" in the task.'
        )
    return tuple(held)


def _in_braces(choices: object) -> bool:
    return isinstance(choices, str) and bool(COLUMN.search(choices))


def column_of_choices(task: TaskConfig) -> str | None:
    """The one column that holds the choices, named with braces or without; None for a text of several columns."""
    if not _in_braces(task.choices):
        return str(task.choices or "choices")
    alone = COLUMN.fullmatch(str(task.choices))
    return alone[1] if alone else None


def _parted(pattern: object, text: str, where: str) -> tuple[str, ...]:
    """Choices with ; between them, each once."""
    parts = (part.strip() for part in text.split(";"))
    several = tuple(dict.fromkeys(part for part in parts if part))
    if len(several) < 2:
        raise DataError(
            f'{where}: "{pattern}" gives {some(map(shown, several)) or "none"}; two or more choices '
            "with ; between them are wanted."
        )
    return several


def _listed(text: str) -> list[Any] | None:
    """The list that a cell holds as JSON text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None
