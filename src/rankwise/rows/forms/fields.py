"""The known fields of rows: alternative names of the same field, and fields that a format requires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError, did_you_mean, some
from rankwise.rows.forms.columns import Row
from rankwise.rows.forms.turns import text_of

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
