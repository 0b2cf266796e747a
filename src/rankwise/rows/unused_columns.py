"""What is said of unused columns, which report/unused.py counts: of those that are only named, and of those that stop a
training, with the flags that use them or leave them out."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.config.base import shown
from rankwise.errors import did_you_mean, some
from rankwise.rows.forms.formats import ANSWER_FIELDS, FIELDS
from rankwise.rows.forms.proposals import REASONS, can_be_typed, ignoring, options_for
from rankwise.rows.report.unused import Unused
from rankwise.rows.sources import OpenedSource
from rankwise.runs.data_report import UnusedColumn

PROMPT_FORMATS = ("prompt", "alpaca", "dolly", "input-output", "classification", "text")
"""Formats whose rows could be written with --prompt and --completion instead."""
BESIDE_TEXT = {
    "completion", "response", "answer", "answers", "output", "target", "summary", "sql", "translation", "fields",
    "json", "extracted", "extraction",
}  # fmt: skip
"""Columns that are an answer by their name, so that rows of `text` would be trained on without it."""
IS_ANSWER = "an answer, by its name"
CHOSEN = "--text and --label choose others"
ANSWERS = (*ANSWER_FIELDS, "output", "label")


def unused_columns(readings: Sequence[OpenedSource]) -> tuple[UnusedColumn, ...]:
    """Facts about the unused columns of each source, over all its files."""
    facts: list[UnusedColumn] = []
    for reading in readings:
        files: dict[str, list[str]] = {}
        for file, unused in reading.unused.items():
            for name in unused.columns:
                files.setdefault(name, []).append(file)
        facts += [_fact(name, among, reading) for name, among in files.items()]
    return tuple(facts)


def _fact(name: str, files: Sequence[str], reading: OpenedSource) -> UnusedColumn:
    every = [(reading.unused[file], reading.unused[file].columns[name]) for file in files]
    stopping = [(unused, column) for unused, column in every if column.stops(unused.judged)]
    unused, column = (stopping or every)[0]
    filled, rows = sum(column.filled for _, column in every), sum(unused.rows for unused, _ in every)
    of_text = any(part.format == "text" and part.name in files for part in reading.parts)
    is_answer = of_text and 2 * filled > rows and _is_answer(name)
    chosen = {"text", "label"} <= reading.source.columns.keys()
    return UnusedColumn(
        column=name.encode(errors="backslashreplace").decode(),
        file=files[0] if len(files) == 1 else reading.source.path,
        filled=filled, rows=rows, example=column.example, stops=not chosen and (bool(stopping) or is_answer),
        why=CHOSEN if chosen else IS_ANSWER if is_answer else column.why(unused.judged),
    )  # fmt: skip


def _is_answer(name: str) -> bool:
    return name.casefold() in BESIDE_TEXT or name.casefold().startswith("answer_")


def sentences(facts: Sequence[UnusedColumn]) -> list[str]:
    """One for each file with unused columns that stop nothing."""
    files: dict[str, list[UnusedColumn]] = {}
    for fact in facts:
        if not fact.stops:
            files.setdefault(fact.file, []).append(fact)
    return [_sentence(file, columns) for file, columns in files.items()]


def _sentence(file: str, columns: Sequence[UnusedColumn]) -> str:
    first, *others = columns
    if others:
        named, why = some((shown(one.column) for one in columns), 8), dict.fromkeys(one.why for one in columns)
        return f"{file}: the columns {named} are not used ({'; '.join(why)})"
    return (
        f"{file}: the column {shown(first.column)} is not used; {first.filled:,} of {first.rows:,} rows have a "
        f"value, such as {first.example} ({first.why})"
    )


def problems(readings: Sequence[OpenedSource], facts: Sequence[UnusedColumn]) -> list[str]:
    """Why training stops: unused columns with text, and ignored columns that do not exist."""
    stopping = list(dict.fromkeys(fact.column for fact in facts if fact.stops))
    ways = _way_to_use(readings, stopping) if stopping else ""
    them = "it" if len(stopping) == 1 else "them"
    stops = [
        f"{fact.file}: the column {shown(fact.column)} has {'values' if fact.why == IS_ANSWER else 'text'} in most "
        f"rows, such as {fact.example}, but is not used; {ways}leave {them} out with {ignoring(stopping)} "
        "(data.ignore_columns)."
        for fact in facts
        if fact.stops
    ]
    return [*stops, *_ignored_in_vain(readings)]


def _way_to_use(readings: Sequence[OpenedSource], stopping: Sequence[str]) -> str:
    """How to use the columns, as part of a sentence; empty if the row format has no prompt."""
    for reading in readings:
        parts = {part.name: part.format for part in reading.parts}
        files = [name for name, unused in reading.unused.items() if not unused.columns.keys().isdisjoint(stopping)]
        if not files or (reading.source.prompt is None and parts[files[0]] not in PROMPT_FORMATS):
            continue
        writable = [name for name in stopping if _is_writable(name, reading)]
        if not writable:
            return "write its values as text into the file and use that, or "
        if reading.source.prompt is not None:
            return f"add {' '.join(f'{{{name}}}' for name in writable)} to --prompt (data.prompt), or "
        others = [name for name in stopping if name not in writable]
        flags = _flags(reading, reading.unused[files[0]], writable) + (f" {ignoring(others)}" if others else "")
        return f"use {'it' if len(stopping) == 1 else 'them'} with {flags}, or "
    return ""


def _is_writable(name: str, reading: OpenedSource) -> bool:
    among = [unused.columns[name] for unused in reading.unused.values() if name in unused.columns]
    return can_be_typed(name) and bool(among) and all(column.writable for column in among)


def _flags(reading: OpenedSource, unused: Unused, writable: Sequence[str]) -> str:
    """The flags --prompt and --completion that use the columns, in the order of the file. Reasoning comes before the
    answer. Where the format has no answer, as `text`, it is the first column named like one, or else the last."""
    ours = {theirs: field for field, theirs in reading.source.columns.items()}
    fields = {name: ours.get(name, name) for name in unused.names if can_be_typed(name)}
    used = {name: known for name, known in fields.items() if name not in unused.columns and known in FIELDS}
    answer = next((name for name, known in used.items() if known in ANSWERS), None)
    answer = answer or next(filter(_is_answer, writable), writable[-1])
    reasons = [name for name in writable if name.casefold() in REASONS and name != answer]
    asks = {name for name, known in used.items() if known not in (*ANSWERS, "history")}.union(writable)
    return options_for([name for name in fields if name in asks - {*reasons, answer}], [*reasons, answer])


def _ignored_in_vain(readings: Sequence[OpenedSource]) -> list[str]:
    names = dict.fromkeys(name for reading in readings for unused in reading.unused.values() for name in unused.names)
    ignored = dict.fromkeys(name for reading in readings for name in reading.source.ignore_columns)
    return [
        f'data.ignore_columns names "{name}", but no row has this column; the columns are {some(map(shown, names), 8)}.'
        f"{did_you_mean(name, names)}"
        for name in ignored
        if name not in names
    ]
