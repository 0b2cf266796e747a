"""Every row of a file answered, many at once, and written with its answer beside it.

Rows are read as the run's own were: by the same columns, texts and labels, with its system message. They need no answer
of their own, and one that they have is not looked at. The file of answers is whole or not there; it has JSON lines, or
is CSV where its name ends in .csv.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, singledispatch
from pathlib import Path
from typing import Any, Unpack

from rankwise.config.data import DataConfig
from rankwise.config.generation import GenerationConfig
from rankwise.errors import ConfigError, DataError, ResourceError, is_out_of_memory, joined_problems
from rankwise.inference.decoding import Answer
from rankwise.inference.generate import BATCH_SIZE, answers_in_turn
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import Opening, open_artifact
from rankwise.objectives.objective import Classifier, Objective
from rankwise.objectives.predictions import Prediction
from rankwise.rows.asking import PLACEHOLDER, question_of
from rankwise.rows.forms.image_rows import is_image
from rankwise.rows.sources import open_source, raw_records
from rankwise.rows.text.example import Example
from rankwise.rows.text.tokenize import prompt_ids
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import check_place, write_atomic

COLUMN = "prediction"
ANSWER = "rankwise: the answer"
READ = ("format", "columns", "prompt", "completion", "ignore_columns", "labels", "system")
"""Settings of a run's data that say how a row is read."""
PROBLEM = "error"
AT_ONCE = 512
"""Rows of a classifier that are encoded at once; images of more would fill the memory."""


@dataclass(frozen=True)
class AnswerSettings:
    """How rows are to be answered."""

    config: GenerationConfig
    system: str | None
    base: bool
    batch_size: int
    skip_bad_rows: bool
    callback: Callback

    @property
    def changed(self) -> list[str]:
        """The settings of answers that are not as usual."""
        flags = ["base"] * self.base + ["system"] * (self.system is not None)
        usual = GenerationConfig()
        others = [name for name, value in usual if getattr(self.config, name) != value]
        return flags + ["batch_size"] * (self.batch_size != BATCH_SIZE) + others


@dataclass(frozen=True)
class Predicted:
    out: Path
    column: str
    rows: list[PredictedRow]
    seconds: float

    @property
    def classified(self) -> bool:
        """Whether the rows were answered by a classifier, which writes no tokens."""
        return any(row.prediction is not None for row in self.rows)

    @property
    def answers(self) -> list[Answer]:
        return [row.answer for row in self.rows if row.answer is not None]

    @property
    def repeated(self) -> list[str]:
        """Where the rows stand whose answers repeat themselves."""
        return [row.where for row in self.rows if row.answer is not None and row.answer.stopped == "repetition"]

    def summary(self) -> dict[str, Any]:
        """What `rankwise predict --json` prints."""
        tokens = sum(answer.tokens for answer in self.answers)
        return {
            "out": self.out, "column": self.column, "rows": len(self.rows),
            "answered": sum(row.problem is None for row in self.rows),
            "errors": [row.problem for row in self.rows if row.problem is not None], "tokens": tokens,
            "seconds": round(self.seconds, 3), "stopped": dict(Counter(answer.stopped for answer in self.answers)),
            "repeated": self.repeated,
        }  # fmt: skip


def predict(
    run: str | Path | TunedModel, data: str | Path, out: str | Path, config: GenerationConfig | None = None, *,
    prompt: str | None = None, system: str | None = None, column: str = COLUMN, base: bool = False,
    batch_size: int = BATCH_SIZE, skip_bad_rows: bool = False, overwrite: bool = False, callback: Callback = silent,
    **opening: Unpack[Opening],
) -> Predicted:  # fmt: skip
    """`prompt` is a text with {columns} in it, instead of how the run's rows were read; `opening` goes to
    `open_artifact`."""
    began, out = time.perf_counter(), Path(out)
    _check_out(out, data, overwrite)
    artifact = run.artifact if isinstance(run, TunedModel) else open_artifact(str(run), callback, **opening)
    objective = artifact.objective
    how = AnswerSettings(config or GenerationConfig(), system, base, batch_size, skip_bad_rows, callback)
    form = objective.row_form(None if artifact.run is None else artifact.run.manifest.data.format)
    rows = _rows(_reading(artifact.run, str(data), prompt, system), form, has_prompt=prompt is not None)
    _refuse_taken([column, *objective.columns(column), *([PROBLEM] if skip_bad_rows else [])], rows)
    _refuse_bad(rows, skip_bad_rows)
    objective.check_answering(how.changed)
    tuned = run if isinstance(run, TunedModel) else load_tuned(artifact, callback)
    complete(objective, rows, tuned, how)
    write_atomic(out, file_of([row.as_columns(column) for row in rows], out))
    return Predicted(out, column, rows, time.perf_counter() - began)


@singledispatch
def complete(objective: Objective, rows: Sequence[PredictedRow], tuned: TunedModel, how: AnswerSettings) -> None:
    """Give each row that can be read its answer or its prediction, or its problem."""
    _render(rows, tuned, how.system, how.config.max_new_tokens)
    _refuse_bad(rows, how.skip_bad_rows)
    with tuned.base(how.base):
        _answer([row for row in rows if row.problem is None], tuned, how)


@complete.register(Classifier)
def classify(objective: Classifier, rows: Sequence[PredictedRow], tuned: TunedModel, how: AnswerSettings) -> None:
    readable = [(row, row.question) for row in rows if row.question is not None and row.problem is None]
    for begin in range(0, len(readable), AT_ONCE):
        part = readable[begin : begin + AT_ONCE]
        report = partial(_report_progress, how.callback, objective.activity, begin, len(readable))
        predicted, problems = tuned.predict([question for _, question in part], report)
        for at, (row, _) in enumerate(part):
            row.prediction, row.problem = predicted.get(at), problems.get(at)
    _refuse_bad(rows, how.skip_bad_rows)


def _report_progress(callback: Callback, activity: str, before: int, rows: int, done: int) -> None:
    callback(ProgressUpdate(activity, before + done, rows, "rows"))


def _check_out(out: Path, data: str | Path, overwrite: bool) -> None:
    """Before anything is read."""
    check_name(out)
    check_place(out)
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise DataError(f"{out}: is the file of --data; give --out another name.")
    if out.exists() and not overwrite:
        raise DataError(f"{out}: already exists. Give --out another name, or add --overwrite.")


def _reading(run: RunSnapshot | None, data: str, prompt: str | None, system: str | None) -> DataConfig:
    how: dict[str, Any] = {}
    if prompt is not None:
        how = {"prompt": prompt, "completion": f"{{{ANSWER}}}"}
    elif run is not None:
        how = _settings_of(run)
    return DataConfig(**{**how, "path": data, **({} if system is None else {"system": system})})


def _settings_of(run: RunSnapshot) -> dict[str, Any]:
    """How the run's rows were read. ConfigError where it was trained on several sources with different settings."""
    data = run.experiment.data
    every = [{name: getattr(source, name) for name in READ} for source in data.all_sources]
    if any(one != every[0] for one in every):
        raise ConfigError(
            [f'run "{run.folder.name}" was trained on sources with different settings, so it is unclear how to '
             "read these rows. Give the question with --prompt."]
        )  # fmt: skip
    said = {name: value for name, value in every[0].items() if value}
    return {"system": data.system, **said} if data.system is not None else said


def _rows(config: DataConfig, form: str | None, *, has_prompt: bool) -> list[PredictedRow]:
    reading, found = open_source(config, config.all_sources[0]), []
    for part in reading.parts:
        for where, raw in raw_records(part):
            row = PredictedRow(where, {} if isinstance(raw, DataError) else raw)
            try:
                filled = raw | {ANSWER: PLACEHOLDER} if has_prompt and not isinstance(raw, DataError) else raw
                row.question = question_of(reading, part, where, filled, form)
            except DataError as error:
                row.problem = str(error)
            found.append(row)
    if not found:
        raise DataError(f"{config.path}: holds no rows.")
    return found


def _refuse_taken(names: Sequence[str], rows: Sequence[PredictedRow]) -> None:
    for name in names:
        taken = next((row.where for row in rows if name in row.columns), None)
        if taken is not None and name == PROBLEM:
            raise DataError(
                f'{taken}: has a column "{PROBLEM}", which is reserved for problems of bad rows; rename it.'
            )
        if taken is not None:
            raise DataError(f'{taken}: already has a column "{name}"; name another one for the answers with --column.')


def _refuse_bad(rows: Sequence[PredictedRow], skip: bool) -> None:
    problems = [row.problem for row in rows if row.problem is not None]
    if problems and not skip:
        raise DataError(
            f"{joined_problems(problems)}\n"
            "--on-bad-row skip answers the other rows and writes these problems into a column."
        )
    if len(problems) == len(rows):
        raise DataError(f"{joined_problems(problems)}\nNo row can be answered.")


def _render(rows: Sequence[PredictedRow], tuned: TunedModel, system: str | None, new: int) -> None:
    """A row that brings no system message has the one that is given, or that of the run's rows."""
    context = tuned.model.context_length
    for row in rows:
        if row.question is None:
            continue
        messages, tools = row.question.messages, row.question.tools
        if messages[0].role != "system":
            messages = (*tuned.opening(system), *messages)
        try:
            row.ids = prompt_ids(tuned.model.template.text(messages, tools, answer_next=True), tuned.model.tokenizer)
        except DataError as error:
            row.problem = f"{row.where}: {error}"
            continue
        if context is not None and len(row.ids) + new > context:
            row.problem = (
                f"{row.where}: has {len(row.ids):,} tokens; with {new:,} new tokens (--max-new-tokens) it does not fit "
                f"into the model's context of {context:,}. Shorten the row, or lower --max-new-tokens."
            )


def _answer(rows: Sequence[PredictedRow], tuned: TunedModel, how: AnswerSettings) -> None:
    prompts, batch_size = [row.ids for row in rows], how.batch_size
    try:
        answers = answers_in_turn(
            tuned.model, prompts, tuned.constrained(how.config), batch_size,
            partial(_report_progress, how.callback, "Answering", 0, len(prompts)),
        )  # fmt: skip
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory while answering up to {min(batch_size, len(prompts))} rows at once, the longest of "
                f"{max(map(len, prompts)):,} tokens. Lower --batch-size {batch_size}."
            ) from None
        raise
    for row, answer in zip(rows, answers, strict=True):
        row.answer = answer


@dataclass
class PredictedRow:
    """One of the file: what it holds, what it asks, and what became of it."""

    where: str
    columns: dict[str, Any]
    question: Example | None = None
    ids: list[int] = field(default_factory=list)
    answer: Answer | None = None
    prediction: Prediction | None = None
    """What a classifier predicts for the row, in place of an answer; None for other models."""
    problem: str | None = None

    def as_columns(self, column: str) -> dict[str, Any]:
        """The columns of the row together with its answer, or with what is wrong."""
        if self.prediction is not None:
            return self.columns | self.prediction.as_columns(column)
        if self.answer is not None:
            return self.columns | {column: self.answer.text}
        return self.columns | {column: None, PROBLEM: self.problem}


SUFFIXES = (".jsonl", ".csv")


def check_name(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"{out}: the name of --out must end in {' or '.join(SUFFIXES)}.")


def file_of(rows: Sequence[dict[str, Any]], out: Path) -> bytes:
    """The file's content. Of an image only the path is written, if it has one."""
    rows = [{name: _path(value) if is_image(value) else value for name, value in row.items()} for row in rows]
    return _csv(rows) if out.suffix.lower() == ".csv" else b"".join(map(_line, rows))


def _path(image: Any) -> Any:
    return image["path"] if isinstance(image, dict) else None


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(row, default=str).encode() + b"\n"


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Write all columns that occur in any row. A value that is not a text or a number is written as JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode(errors="replace")


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value
