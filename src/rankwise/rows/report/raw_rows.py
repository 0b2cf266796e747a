"""Raw rows, as they are in their files: a hash of each, unused columns, repeated headers, labels of several kinds.

`RawReport.add` looks at each row of a source while it is read (`OpenedSource.chunks`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config.base import shown
from rankwise.config.data import column_text
from rankwise.errors import did_you_mean, some
from rankwise.rows.files.hub import Part
from rankwise.rows.files.image_folder import METADATA, sha256_or_nothing, unnamed_images
from rankwise.rows.forms.columns import DATABASES, database_of, renamed
from rankwise.rows.forms.formats import ANSWER_FIELDS, FIELDS, used_fields
from rankwise.rows.forms.proposals import REASONS, can_be_typed, ignoring, options_for
from rankwise.rows.forms.turns import is_turn
from rankwise.rows.report.unused import Unused
from rankwise.rows.sources import OpenedSource
from rankwise.rows.text.example import Example
from rankwise.runs.row_facts import UnusedColumn

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
ROW_HASH = 8
"""Bytes of a row's hash."""


@dataclass
class RawCounts:
    """What shows in the cells of rows alone, and is gone once they are read."""

    headers: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows with each kind of label."""
    first: dict[str, str] = field(default_factory=dict)
    hashes: bytearray = field(default_factory=bytearray)
    """A hash of each row, by which `rankwise verify` and `rankwise rebuild` name one that changed."""

    def add(self, row: Any, where: str, label: str) -> None:
        content = ""
        with suppress(TypeError, RecursionError):  # no row, or one that JSON cannot hold: all such are alike
            content = json.dumps(row, sort_keys=True, default=_content_of)
        self.hashes += blake2b(content.encode(), digest_size=ROW_HASH).digest()
        if not isinstance(row, dict):
            return
        name, value = next(iter(row.items()), ("", None))
        if isinstance(value, str) and name == value and all(value == name or not value for name, value in row.items()):
            self.headers += 1
            self.first.setdefault("headers", where)
        if label in row and (kind := _kind(row[label])):
            self.kinds[kind] += 1
            self.first.setdefault(kind, where)

    def add_image(self, content: bytes) -> None:
        """The image that the last row names is a part of it."""
        both = bytes(self.hashes[-ROW_HASH:]) + content
        self.hashes[-ROW_HASH:] = blake2b(both, digest_size=ROW_HASH).digest()

    def warnings(self, rows: int) -> Iterator[str]:
        if self.headers:
            yield (
                f"rows that repeat the names of the columns: {self.headers:,} of {rows:,}, such as "
                f"{self.first['headers']}. Files may have been joined together with their header lines. Delete these"
            )
        if len(self.kinds) > 1 and ("text" in self.kinds or "number with decimals" not in self.kinds):
            listed = some(f"{kind} ({count:,} rows, first {self.first[kind]})" for kind, count in self.kinds.items())
            yield f'labels are written in several ways, and 1, 1.0 and "1" are one label: {listed}'


def _content_of(value: Any) -> str:
    """Bytes and pixels by their hash; what else JSON does not know by its text."""
    return blake2b(bytes(value)).hexdigest() if isinstance(value, bytes | np.ndarray) else repr(value)


def _kind(label: Any) -> str | None:
    if isinstance(label, str):
        return "text"
    if isinstance(label, float):
        return "whole number as 1.0" if label.is_integer() else "number with decimals"
    return "whole number" if isinstance(label, int) and not isinstance(label, bool) else None


@dataclass
class RawReport:
    """What the raw rows of a source show, by file."""

    reading: OpenedSource
    unused: dict[str, Unused] = field(default_factory=lambda: defaultdict(Unused))
    counts: dict[str, RawCounts] = field(default_factory=lambda: defaultdict(RawCounts))
    images: dict[str, set[Path]] = field(default_factory=lambda: defaultdict(set))
    """The images that the rows of each file name."""

    def add(self, part: Part, where: str, row: Any, examples: Sequence[Example]) -> None:
        """Look at a row and the examples that were made of it, none if it cannot be read."""
        source, counts = self.reading.source, self.counts[part.name]
        counts.add(row, where, source.columns.get("label", "label") if source.prompt is None else "")
        if not examples:
            return
        unused = self.unused[part.name]
        unused.add(row, used_columns(self.reading, part, row), examples, part.rows)
        if source.ignore_columns:
            turns = (one for value in row.values() if isinstance(value, list) for one in value if is_turn(one))
            unused.names.update(dict.fromkeys(key for turn in turns for key in turn))
        if (image := examples[0].image) is not None and isinstance(image.source, Path):
            counts.add_image(sha256_or_nothing(image.source).encode())
            if part.of_images:
                self.images[part.name].add(image.source)

    def warnings(self) -> list[str]:
        """Probable mistakes in the files and folders, known once all rows are read."""
        parts = self.reading.parts
        found = [f"{folder}: contains no image" for folder in self.reading.empty_folders]
        found += [warning for part in parts for warning in self.counts[part.name].warnings(part.rows)]
        found += [f"{part.name}: {what}" for part in parts if part.layout and (what := part.layout.blank)]
        for part in parts:
            if part.of_images and Path(part.name).name.lower() in METADATA:
                what = unnamed_images(part.folder, self.images[part.name])
                found += [f"{part.name}: {what}"] if what else []
        return found


def used_columns(reading: OpenedSource, part: Part, row: dict[str, Any]) -> set[str]:
    """Columns that the row was made from, and those that the user ignores."""
    source, group = reading.source, reading.config.group
    aside = {*source.ignore_columns, *((group,) if group is not None else ())}
    aside |= {name for name in DATABASES if name in row and database_of({name: row[name]}, None) is not None}
    if source.prompt is not None:
        texts = (source.prompt, source.completion, reading.system)
        return aside.union(*(column_text(text or "").columns for text in texts))
    ours = {name: value for name, value in row.items() if name not in source.ignore_columns}
    assert part.format is not None, "set by the first row"
    fields = used_fields(renamed(ours, source.columns, part.name), part.format)
    taken = set(source.columns.values())
    return aside | {source.columns.get(name, name) for name in fields if name in source.columns or name not in taken}


def unused_columns(reports: Sequence[RawReport]) -> tuple[UnusedColumn, ...]:
    """Facts about the unused columns of each source, over all its files."""
    facts: list[UnusedColumn] = []
    for report in reports:
        files: dict[str, list[str]] = {}
        for file, unused in report.unused.items():
            for name in unused.columns:
                files.setdefault(name, []).append(file)
        facts += [_fact(name, among, report) for name, among in files.items()]
    return tuple(facts)


def _fact(name: str, files: Sequence[str], report: RawReport) -> UnusedColumn:
    every = [(report.unused[file], report.unused[file].columns[name]) for file in files]
    stopping = [(unused, column) for unused, column in every if column.stops(unused.judged)]
    unused, column = (stopping or every)[0]
    filled, rows = sum(column.filled for _, column in every), sum(unused.rows for unused, _ in every)
    of_text = any(part.format == "text" and part.name in files for part in report.reading.parts)
    is_answer = of_text and 2 * filled > rows and _is_answer(name)
    chosen = {"text", "label"} <= report.reading.source.columns.keys()
    return UnusedColumn(
        column=name.encode(errors="backslashreplace").decode(),
        file=files[0] if len(files) == 1 else report.reading.source.path,
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


def problems(reports: Sequence[RawReport], facts: Sequence[UnusedColumn]) -> list[str]:
    """Why training stops: unused columns with text, and ignored columns that do not exist."""
    stopping = list(dict.fromkeys(fact.column for fact in facts if fact.stops))
    ways = _way_to_use(reports, stopping) if stopping else ""
    them = "it" if len(stopping) == 1 else "them"
    stops = [
        f"{fact.file}: the column {shown(fact.column)} has {'values' if fact.why == IS_ANSWER else 'text'} in most "
        f"rows, such as {fact.example}, but is not used; {ways}leave {them} out with {ignoring(stopping)} "
        "(data.ignore_columns)."
        for fact in facts
        if fact.stops
    ]
    return [*stops, *_ignored_in_vain(reports)]


def _way_to_use(reports: Sequence[RawReport], stopping: Sequence[str]) -> str:
    """How to use the columns, as part of a sentence; empty if the row format has no prompt."""
    for report in reports:
        parts = {part.name: part.format for part in report.reading.parts}
        files = [name for name, unused in report.unused.items() if not unused.columns.keys().isdisjoint(stopping)]
        if not files or (report.reading.source.prompt is None and parts[files[0]] not in PROMPT_FORMATS):
            continue
        writable = [name for name in stopping if _is_writable(name, report)]
        if not writable:
            return "write its values as text into the file and use that, or "
        if report.reading.source.prompt is not None:
            return f"add {' '.join(f'{{{name}}}' for name in writable)} to --prompt (data.prompt), or "
        others = [name for name in stopping if name not in writable]
        flags = _flags(report, report.unused[files[0]], writable) + (f" {ignoring(others)}" if others else "")
        return f"use {'it' if len(stopping) == 1 else 'them'} with {flags}, or "
    return ""


def _is_writable(name: str, report: RawReport) -> bool:
    among = [unused.columns[name] for unused in report.unused.values() if name in unused.columns]
    return can_be_typed(name) and bool(among) and all(column.writable for column in among)


def _flags(report: RawReport, unused: Unused, writable: Sequence[str]) -> str:
    """The flags --prompt and --completion that use the columns, in the order of the file. Reasoning comes before the
    answer. Where the format has no answer, as `text`, it is the first column named like one, or else the last."""
    ours = {theirs: field for field, theirs in report.reading.source.columns.items()}
    fields = {name: ours.get(name, name) for name in unused.names if can_be_typed(name)}
    used = {name: known for name, known in fields.items() if name not in unused.columns and known in FIELDS}
    answer = next((name for name, known in used.items() if known in ANSWERS), None)
    answer = answer or next(filter(_is_answer, writable), writable[-1])
    reasons = [name for name in writable if name.casefold() in REASONS and name != answer]
    asks = {name for name, known in used.items() if known not in (*ANSWERS, "history")}.union(writable)
    return options_for([name for name in fields if name in asks - {*reasons, answer}], [*reasons, answer])


def _ignored_in_vain(reports: Sequence[RawReport]) -> list[str]:
    names = dict.fromkeys(name for report in reports for unused in report.unused.values() for name in unused.names)
    ignored = dict.fromkeys(name for report in reports for name in report.reading.source.ignore_columns)
    return [
        f'data.ignore_columns names "{name}", but no row has this column; the columns are {some(map(shown, names), 8)}.'
        f"{did_you_mean(name, names)}"
        for name in ignored
        if name not in names
    ]
