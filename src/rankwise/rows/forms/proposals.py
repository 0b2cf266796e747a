"""Guess the columns of the prompt and the answer in a row of unknown format, as a proposal in an error message.

The answer is the column with the best-known name for an answer, or else the last text. The prompt is every other column
with several words, or else the longest text. Numbers, web addresses and single words are no prompt.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log
from random import Random
from typing import Any

from rankwise.config.base import shown
from rankwise.config.data import Rows

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
REASONS = ("rationale", "reasoning", "explanation", "thought", "thoughts", "cot", "chain_of_thought", "steps")
"""Columns with the reasoning that leads to an answer. It is trained on together with the answer."""
ASIDE = (
    "id", "index", "idx", "url", "link", "date", "datum", "created", "created_at", "updated_at", "timestamp", "status",
    "lang", "language", "author", "user", "username", "email", "file", "filename", "path", "split",
)  # fmt: skip
"""Columns with metadata of a row, such as its source or date."""
NO_FORM = "match no known row format"
"""What an error says of the columns of such a row."""
PATTERNS, BACKSLASH_N = ("prompt", "completion", "system"), "\\n"
_LINE_BREAK = re.compile(r"\\n(?!abla|eq?\b|eg\b|ot|u\b|ewline)")
"""But for commands of LaTeX."""
PROMPT_WORDS = 3
"""Smallest number of words in a column that can be part of the prompt."""
FEWEST_ROWS, LONGEST_LABEL, EXPLAINED = 20, 5, 0.2
"""Rows from which a label is guessed by words, its most words, and what the texts must tell of it."""


def options_for(prompt: Sequence[str], completion: Sequence[str]) -> str:
    """The flags --prompt and --completion as they are typed in a shell."""
    question, answer = (" ".join(f"{{{name}}}" for name in names) for names in (prompt, completion))
    return f"--prompt {_quoted(question)} --completion {_quoted(answer)}"


def ignoring(names: Sequence[str]) -> str:
    """The flag that ignores these columns, as it is typed in a shell. A name with a comma needs --set."""
    if any("," in name or name != name.strip() for name in names):
        return f"--set {_quoted(f'data.ignore_columns={json.dumps(list(names), ensure_ascii=False)}')}"
    listed = ",".join(names)
    return f"--ignore-columns {listed if shlex.quote(listed) == listed else _quoted(listed)}"


def literal_breaks(sources: Iterable[Rows], system: str | None) -> list[str]:
    """A warning for each text in which a shell has left a backslash and an n where a line break was meant."""
    texts = {("system", system), *((name, getattr(one, name)) for one in sources for name in PATTERNS)}
    return [
        f"the {name} contains \\n, a backslash and the letter n, which are written as they are; for a line break type "
        f"--{name} {_quoted(text.replace(BACKSLASH_N, chr(10)))}"
        for name, text in sorted(texts, key=str)
        if text is not None and _LINE_BREAK.search(text)
    ]


def _quoted(text: str) -> str:
    if not text.isprintable():
        return f"$'{''.join(map(_escaped, text))}'"
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\u{ord(character):04x}")


def told_by_words(texts: Sequence[str], labels: Sequence[str]) -> float:
    """How much oftener than the most frequent label naive Bayes on words is right, as a share of what is left to gain:
    learned from two thirds of the rows and measured on the others."""
    rows = [(label, {*text.casefold().split()}) for label, text in zip(labels, texts, strict=True)]
    Random(0).shuffle(rows)
    others, known = rows[: len(rows) // 3], rows[len(rows) // 3 :]
    prior = Counter(label for label, _ in known)
    counts = Counter((label, word) for label, seen in known for word in seen)

    chances = [{one: log(prior[one]) + sum(log((counts[one, word] + 0.1) / (prior[one] + 0.2)) for word in seen)
                for one in prior} for _, seen in others]  # fmt: skip
    right = sum(max(one, key=one.__getitem__) == label for one, (label, _) in zip(chances, others, strict=True))
    most = max(Counter(label for label, _ in others).values(), default=0)
    return (right - most) / max(1, len(others) - most)


def label_among(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The column with few values that the words of the texts tell best, where they tell much of one."""
    names = [name for name in rows[0] if not _is_aside(name) and can_be_typed(name)] if len(rows) >= FEWEST_ROWS else []
    columns = {name: [str(row.get(name, "")) for row in rows] for name in names}
    few = [name for name, values in columns.items() if 1 < len({*values}) <= len(rows) // 5
           and max(len(value.split()) for value in values) <= LONGEST_LABEL]  # fmt: skip
    texts = [" ".join(one) for one in zip(*(columns[name] for name in names if name not in few), strict=True)]
    told = {name: told_by_words(texts, columns[name]) for name in few if texts}
    best = max(told, key=lambda name: told[name], default=None)
    return best if best is not None and told[best] > EXPLAINED else None


def guessed(row: dict[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> tuple[list[str], str] | None:
    """The columns of the prompt and the column of the answer, or None if there is no good guess."""
    named = {name.casefold().strip(): name for name in reversed(row)}
    written = [name for name, value in row.items() if _is_written(value) and can_be_typed(name)]
    texts = texts_among({name: row[name] for name in written})
    answer = next((named[one] for one in ANSWERS if one in named and named[one] in written), label_among(rows))
    if answer is None:
        objects = [name for name in written if _is_object(row[name])]
        answer = objects[0] if len(objects) == 1 else _unnamed_answer(written, texts)
    rest = [name for name in written if name != answer]
    if answer is None or not rest:
        return None
    known = [named[one] for one in QUESTIONS if named.get(one) in rest]
    longest = max(rest, key=lambda name: len(str(row[name])))
    asking = [name for name in texts if name != answer and _words(row[name]) >= PROMPT_WORDS]
    return (asking or known[:1] or [longest]), answer


def _is_object(value: Any) -> bool:
    """A JSON object, which is written rather than asked."""
    try:
        return isinstance(json.loads(value) if isinstance(value, str) else value, dict)
    except (ValueError, RecursionError):
        return False


def _unnamed_answer(columns: Sequence[str], texts: Sequence[str]) -> str | None:
    """The last text. A column without letters is an answer only if the row has just one text beside it."""
    if len(texts) > 1:
        return texts[-1]
    other = [name for name in columns if name not in texts]
    return other[0] if len(texts) == len(other) == 1 and not _is_aside(other[0]) else None


def texts_among(row: Mapping[str, Any]) -> list[str]:
    """Columns with words: no numbers, dates, addresses or metadata."""
    return [
        name
        for name, value in row.items()
        if isinstance(value, str | list) and _is_written(value) and _says(value) and not _is_aside(name)
    ]


def as_text(row: Mapping[str, Any], question: str, answer: str) -> str:
    """A sentence that says how to train on an answer that is a number."""
    beside = {name for name in texts_among(row) if _words(row[name]) >= PROMPT_WORDS}
    prompt = [name for name in row if name != answer and (name == question or name in beside) and can_be_typed(name)]
    return f" To train on it as text, add {options_for(prompt, [answer])}."


def _says(value: Any) -> bool:
    words = (" ".join(value) if isinstance(value, list) else str(value)).split()
    return 2 * sum(map(_is_word, words)) > len(words)


def _is_word(text: str) -> bool:
    signs = [character for character in text if character.isalnum()]
    return 2 * sum(map(str.isalpha, signs)) > len(signs) and "://" not in text and "@" not in text


def _is_aside(name: str) -> bool:
    name = name.casefold().strip()
    return name in ASIDE or name.endswith(("_id", " id", "-id"))


def proposal(row: dict[str, Any]) -> str:
    """A sentence with the flags to type for these columns, or nothing."""
    guess = guessed(row)
    if guess is None:
        texts = [name for name in texts_among(row) if can_be_typed(name)]
        if not texts or sum(map(can_be_typed, row)) < 2:
            return ""
        return (
            f" Name the columns of the prompt and of the answer: {options_for(texts, ['COLUMN'])}, where COLUMN is the "
            "column of the answer."
        )
    question, answer = guess
    return f" Name the columns of the prompt and of the answer; a guess is {options_for(question, [answer])}."


def can_be_typed(name: str) -> bool:
    return bool(name) and not any(one in "{}\0" or "\ud800" <= one <= "\udfff" for one in name)


def _is_written(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, int | float | str | dict) and bool(str(value).strip())


def _words(value: Any) -> int:
    text = " ".join(value) if isinstance(value, list) else str(value)
    return sum(any(letter.isalpha() for letter in word) for word in text.split())


def _no_header(row: dict[str, Any]) -> str:
    """Where a table's first line is a row: one column has a number as its name, and another a sentence."""
    if not any(name.isdecimal() for name in row) or not any(len(name.split()) > 5 for name in row):
        return ""
    return (
        " They were read from the first line of the table, which seems to be a row. Add a first line that names the "
        "columns."
    )


def no_form(row: dict[str, Any], where: str) -> str:
    preferences = " A preference pair has chosen and rejected." if "chosen" in row else ""
    keys = ", ".join(map(shown, list(row)[:8])) or "(none)"
    more = f" and {len(row) - 8} more" if len(row) > 8 else ""
    return (
        f"{where}: the columns {keys}{more} {NO_FORM}.{preferences or _no_header(row) or proposal(row)} Known formats "
        "include messages, prompt and completion (or response), instruction and output; docs/data.md lists all."
    )
