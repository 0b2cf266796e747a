"""Which columns of a row may be its question and its answer, where no form says so: a guess for an error to print.

The answer is the column with the best known name for one, else the last text; the question is every other column that
holds some words, else the longest text. Numbers, web addresses and words alone ask nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rankwise.spec.spec import shown

ANSWERS = (
    "completion", "response", "answer", "answers", "output", "target", "summary", "highlights", "sql", "label",
    "labels",
    "stars", "rating", "sentiment", "category", "class", "intent", "translation", "reference", "ref", "continuation",
    "title", "score",
)  # fmt: skip
QUESTIONS = (
    "prompt", "question", "instruction", "query", "dialogue", "dialog", "document", "article", "review", "sentence",
    "source", "input", "context", "text", "mr",
)  # fmt: skip
MOST_WORDS_APART = 3
"""A column of at least so many words asks something."""


def options_for(prompt: Sequence[str], completion: str) -> str:
    """As they are typed."""
    asked, learned = " ".join(f"{{{name}}}" for name in prompt), f"{{{completion}}}"
    return f"--prompt {_quoted(asked)} --completion {_quoted(learned)}"


def _quoted(text: str) -> str:
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def guessed(row: dict[str, Any]) -> tuple[list[str], str] | None:
    """The columns of the question and that of the answer, or nothing where that would be no guess."""
    named = {name.casefold().strip(): name for name in reversed(row)}
    written = [
        name for name, value in row.items() if _is_written(value) and name.isprintable() and not set(name) & set("{}")
    ]
    answer = next((named[one] for one in ANSWERS if one in named and named[one] in written), None)
    asking = [name for name in written if name != answer and _words(row[name]) >= MOST_WORDS_APART]
    if answer is None and len(texts := [name for name in written if isinstance(row[name], str)]) > 1:
        answer = texts[-1]
        asking = [name for name in asking if name != answer]
    rest = [name for name in written if name != answer]
    if answer is None or not rest:
        return None
    known = [named[one] for one in QUESTIONS if named.get(one) in rest]
    longest = max(rest, key=lambda name: len(str(row[name])))
    return (asking or known[:1] or [longest]), answer


def proposal(row: dict[str, Any]) -> str:
    """For these very columns: what to type, as a sentence, or nothing."""
    found = guessed(row)
    if found is None:
        return ""
    asked, answer = found
    return f" Name the columns of the prompt and of the answer; a guess is {options_for(asked, answer)}."


def _can_be_typed(name: str) -> bool:
    return name.isprintable() and not set(name) & set("{}")


def _is_written(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, int | float | str) and bool(str(value).strip())


def _words(value: Any) -> int:
    text = " ".join(value) if isinstance(value, list) else str(value)
    return sum(any(letter.isalpha() for letter in word) for word in text.split())


def no_form(row: dict[str, Any], where: str) -> str:
    preferences = " Preference pairs (chosen, rejected) are not supported yet." if "chosen" in row else ""
    keys = ", ".join(map(shown, list(row)[:8])) or "(none)"
    more = f" and {len(row) - 8} more" if len(row) > 8 else ""
    return (
        f"{where}: the columns {keys}{more} match no known row format.{preferences or proposal(row)} Known formats "
        "include messages, prompt and completion (or response), instruction and output; docs/data.md lists all."
    )
