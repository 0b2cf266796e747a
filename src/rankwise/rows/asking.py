"""The prompt of a row that is to be answered, with or without an answer in it.

A row is read as in training. If its answer is missing or empty, a placeholder takes its place while the row is read.
Then the last answer is removed, whether it was a placeholder or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rankwise.config.data import DataConfig, Rows, column_text
from rankwise.errors import ConfigError, DataError
from rankwise.rows.files.hub import Part
from rankwise.rows.forms.columns import Row, from_columns, renamed
from rankwise.rows.forms.formats import ANSWER_FIELDS, FORMS
from rankwise.rows.forms.tagged_rows import TAGGED_FORMATS, list_in
from rankwise.rows.sources import OpenedSource
from rankwise.rows.text.example import OUTSIDE, Example
from rankwise.runs.snapshot import RunSnapshot

PLACEHOLDER = "?"
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "prompt": ANSWER_FIELDS, "alpaca": ("output",), "dolly": ("response",), "input-output": ("output",),
    "classification": ("label",), "image": ("label",),
}  # fmt: skip
"""Fields that may contain the answer, by row format. The first one is filled with the placeholder."""
TURNS = {"messages": "messages", "sharegpt": "conversations"}


READ = ("format", "columns", "prompt", "completion", "ignore_columns", "labels", "system")
"""Settings of a run's data that say how a row is read."""


def settings_of(run: RunSnapshot | None) -> dict[str, Any]:
    """How the run's rows were read. ConfigError where it was trained on several sources with different settings."""
    if run is None:
        return {}
    data = run.experiment.data
    every = [{name: getattr(source, name) for name in READ} for source in data.all_sources]
    if any(one != every[0] for one in every):
        raise ConfigError(
            [f'run "{run.folder.name}" was trained on sources with different settings, so it is unclear how to '
             "read these rows. Give the question with --prompt."]
        )  # fmt: skip
    said = {name: value for name, value in every[0].items() if value}
    return {"system": data.system, **said} if data.system is not None else said


def filled_in(text: str, prompt: str, system: str, where: str) -> Example:
    """The question of a row with this text alone. ConfigError where its prompt and system message name other columns
    than one."""
    names = list(dict.fromkeys((*column_text(prompt).columns, *column_text(system).columns)))
    if len(names) != 1:
        columns = " and ".join(map(repr, names[:8]))
        raise ConfigError([f"a row has the columns {columns}, which one text does not fill. Give rows that have them."])
    return from_columns({names[0]: text}, prompt, PLACEHOLDER, system, where)[0].question


class RowReader:
    """Reads rows in memory as the rows of a run were read. ConfigError where these were read in several ways."""

    def __init__(self, run: RunSnapshot | None, form_of: Callable[[str | None], str | None]) -> None:
        config = DataConfig(path="rows", **settings_of(run))
        self._reading = OpenedSource(config, config.all_sources[0], [])
        self._form = form_of(None if run is None else run.manifest.data.format)

    def question(self, row: Any, where: str) -> Example:
        """A text fills in the prompt of the run, where it has one."""
        source, system = self._reading.source, self._reading.system or ""
        if source.prompt is not None and isinstance(row, str):
            return filled_in(row, source.prompt, system, where)
        return question_of(self._reading, Part("rows", lambda seen: iter(()), str), where, row, self._form)


def question_of(reading: OpenedSource, part: Part, where: str, row: Any, form: str | None) -> Example:
    """The row as an Example whose last message is the question.

    `form` is the format of the rows that the run was trained on, if known. A row that fits it once it has an answer is
    read in this format. Other rows are recognised by their own columns.
    """
    if isinstance(row, DataError):
        raise row
    part.format = None  # recognised again for each row, because only some rows may have an answer
    examples = reading.examples(part, where, with_answer(row, reading.source, form, where))
    if len(examples) != 1:
        raise DataError(f"{where}: has {len(examples)} questions; a row must have exactly one.")
    [example] = examples
    if example.text is not None:
        raise DataError(
            f"{where}: is plain text without a question. Give the question with --prompt; --prompt '{{text}}' uses the "
            "text as the question."
        )
    return example.question


def with_answer(row: Row, source: Rows, form: str | None, where: str) -> Row:
    if source.completion is not None:
        if not set(column_text(source.prompt or "").columns) <= row.keys():
            return row  # reading it names the column that is missing
        return row | {name: PLACEHOLDER for name in column_text(source.completion).columns if _is_empty(row.get(name))}
    given = source.format if source.format != "auto" else form
    if given is not None and set(given.split(", ")) & set(TAGGED_FORMATS):
        return _untagged(row, source)
    forms = [given] if given in FORMS else []
    for one in [*forms, *(other for other in (*ANSWERS, *TURNS) if other != "classification")]:
        filled = _filled(row, source, one)
        try:
            fits = FORMS[one].fits(renamed(filled, source.columns, where))
        except DataError:  # another column is missing; reading the row reports it
            fits = False
        if fits:
            return filled
    return row


def _untagged(row: Row, source: Rows) -> Row:
    """Words or a text without their tags or spans, which are not looked at."""
    tokens, tags, spans = (source.columns.get(name, name) for name in ("tokens", "tags", "spans"))
    if tokens in row and isinstance(words := list_in(row[tokens]), list):
        return row | {tags: [OUTSIDE] * len(words)}
    return row | {spans: []}


def _filled(row: Row, source: Rows, form: str) -> Row:
    if form in TURNS:
        column = source.columns.get(TURNS[form], TURNS[form])
        return row | {column: _closed(row[column])} if column in row else row
    fields = ANSWERS.get(form, ())
    names = [source.columns[field] for field in fields if field in source.columns] or list(fields)
    labelled = form in ("classification", "image")
    if not names or not (labelled or all(_is_empty(row.get(name)) for name in names)):
        return row  # a label is replaced: it may be none of the run's, and the question is the same
    answer = source.labels[0] if labelled and source.labels else PLACEHOLDER
    return row | {next((name for name in names if name in row), names[0]): answer}


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _closed(turns: Any) -> Any:
    """Append an answer to a conversation that ends with a question. Reading the row reports anything else."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a cell of a table
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            return turns
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict) or last.get("role", last.get("from")) in ("assistant", "gpt", "chatgpt", "model"):
        return turns
    return [*turns, {"role": "assistant", "content": PLACEHOLDER}]
