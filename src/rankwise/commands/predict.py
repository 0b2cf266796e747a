"""Every row of a file answered, many at once, and written with its answer beside it; or a few texts answered.

Rows are read as the run's own were: by the same columns, texts and labels, with its system message. They need no answer
of their own, and one that they have is not looked at. A text alone takes the place of the one column that the run's
prompt names. The file of answers is whole or not there (rows/files/output.py).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rankwise.commands.generate import config_in
from rankwise.config.data import DataConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import ConfigError, DataError, ResourceError, is_out_of_memory, joined_problems
from rankwise.inference.decoding import Answer
from rankwise.inference.generate import BATCH_SIZE, answers_in_turn
from rankwise.inference.items import READERS
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import Artifact, open_artifact
from rankwise.objectives.objective import Objective
from rankwise.objectives.predictions import Prediction
from rankwise.rows.asking import PLACEHOLDER, filled_in, question_of, settings_of
from rankwise.rows.files.in_memory import path_of
from rankwise.rows.files.output import Origin, check_name, file_of, line_of
from rankwise.rows.sources import OpenedSource, open_source, raw_records
from rankwise.rows.text.example import Example
from rankwise.rows.text.tokenize import prompt_ids
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import check_place, write_atomic

COLUMN = "prediction"
ANSWER = "rankwise: the answer"
PROBLEM = "error"
MOST_SHOWN = 5
"""Classes of a text that are printed."""
AT_ONCE = 512
"""Rows of a classifier that are encoded at once; images of more would fill the memory."""


@dataclass(frozen=True)
class AnswerSettings:
    """How rows are to be answered. A bad row ends it unless bad rows are skipped; None where nobody can ask for
    that."""

    config: GenerationConfig
    system: str | None = None
    base: bool = False
    batch_size: int = BATCH_SIZE
    skip_bad_rows: bool | None = None
    callback: Callback = silent

    @property
    def changed(self) -> list[str]:
        """The settings of answers that are not as usual."""
        flags = ["base"] * self.base + ["system"] * (self.system is not None)
        usual = GenerationConfig()
        others = [name for name, value in usual if getattr(self.config, name) != value]
        return flags + ["batch_size"] * (self.batch_size != BATCH_SIZE) + others


@dataclass(frozen=True)
class Predicted:
    out: Path | None
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

    @property
    def records(self) -> list[dict[str, Any]]:
        """The columns of each row together with its answer."""
        return [row.as_columns(self.column) for row in self.rows]

    def origin(self, reading: OpenedSource | None) -> Origin | None:
        """The file that the rows were read from, if that is one."""
        places, columns = [row.where for row in self.rows], {name for row in self.rows for name in row.columns}
        return reading and Origin.of(reading.parts, reading.source, places, self.records, columns)

    @property
    def lines(self) -> str:
        """Each row with its answer as a line of JSON."""
        return b"".join(map(line_of, self.records)).decode()

    def summary(self) -> dict[str, Any]:
        """What `rankwise predict --json` prints: with the rows where they are written to no file."""
        tokens = sum(answer.tokens for answer in self.answers)
        return {
            "out": self.out, "column": self.column, "rows": len(self.rows),
            "answered": sum(row.problem is None for row in self.rows),
            "errors": [row.problem for row in self.rows if row.problem is not None], "tokens": tokens,
            "seconds": round(self.seconds, 3), "stopped": dict(Counter(answer.stopped for answer in self.answers)),
            "repeated": self.repeated, **({"predictions": self.records} if self.out is None else {}),
        }  # fmt: skip


def predict(
    run: str | os.PathLike[str] | TunedModel, data: Any = None, out: str | Path | None = None,
    config: GenerationConfig | None = None, *, texts: Sequence[str] = (), most: int | None = None,
    prompt: str | None = None, system: str | None = None, column: str = COLUMN, base: bool = False,
    batch_size: int = BATCH_SIZE, skip_bad_rows: bool | None = False, overwrite: bool = False,
    callback: Callback = silent, **more: Any,
) -> Predicted:  # fmt: skip
    """Answer the rows of `data` (a path or rows in memory), or `texts` instead. `most` limits this to the first rows.
    `prompt` is a template with {columns}, replacing the one from training. `more` takes generation settings, instead
    of a `config`, and how to open the run (`open_artifact`). Nothing is written without `out`."""
    config, opening = config_in(more, config, predict)
    began, out = time.perf_counter(), None if out is None else Path(out)
    if isinstance(data, list | tuple) and data and all(isinstance(one, str) for one in data):
        data, texts = None, data
    if (data is None) == (not texts):
        raise ConfigError(["give rows with --data, or a text with --text; one of the two."])
    data = None if data is None else path_of(data)
    if out is not None:
        _check_out(out, data, overwrite)
    artifact = run.artifact if isinstance(run, TunedModel) else open_artifact(run, callback, **opening)
    objective = artifact.objective
    how = AnswerSettings(config, system, base, batch_size, skip_bad_rows, callback)
    form = objective.row_form(None if artifact.run is None else artifact.run.manifest.data.format)
    reading, rows = None, list[PredictedRow]()
    if data is None:
        rows = rows_of_items(artifact, texts, prompt)
    else:
        config_of_rows = _reading(artifact.run, data, prompt, system)
        reading = open_source(config_of_rows, config_of_rows.all_sources[0])
        rows = _rows(reading, form, most, has_prompt=prompt is not None)
    columns = [] if objective.classifier is None else objective.classifier.inputs.columns(column)
    _refuse_taken([column, *columns, *([PROBLEM] if skip_bad_rows else [])], rows)
    _refuse_bad(rows, skip_bad_rows)
    _check_answering(objective, how.changed)
    tuned = run if isinstance(run, TunedModel) else load_tuned(artifact, callback)
    objective.among(COMPLETING)(rows, tuned, how)
    predicted = Predicted(out, column, rows, time.perf_counter() - began)
    if out is not None:
        write_atomic(out, file_of(predicted.records, out, predicted.origin(reading), callback))
    return predicted


def answer_items(tuned: TunedModel, items: Any, how: AnswerSettings) -> list[PredictedRow]:
    """Texts, pairs of texts, conversations or images, answered."""
    rows = rows_of_items(tuned.artifact, items)
    _check_answering(tuned.objective, how.changed)
    tuned.objective.among(COMPLETING)(rows, tuned, how)
    return rows


def rows_of_items(artifact: Artifact, items: Any, prompt: str | None = None) -> list[PredictedRow]:
    """Items as rows. A text fills in the prompt of the run, which may name one column."""
    how = settings_of(artifact.run)
    template, system = prompt or how.get("prompt"), how.get("system") or ""
    if template is None or not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return [
            PredictedRow(one.where, {}, one) for one in artifact.objective.among(READERS)(artifact.objective, items)
        ]
    return [
        PredictedRow(where, {}, filled_in(item, template, system, where))
        for where, item in ((f"text {number}", item) for number, item in enumerate(items, start=1))
    ]


def answer_rows(rows: Sequence[PredictedRow], tuned: TunedModel, how: AnswerSettings) -> None:
    _render(rows, tuned, how.system, how.config.max_new_tokens)
    _refuse_bad(rows, how.skip_bad_rows)
    with tuned.base(how.base):
        _answer([row for row in rows if row.problem is None], tuned, how)


def classify(rows: Sequence[PredictedRow], tuned: TunedModel, how: AnswerSettings) -> None:
    readable = [(row, row.question) for row in rows if row.question is not None and row.problem is None]
    for begin in range(0, len(readable), AT_ONCE):
        part = readable[begin : begin + AT_ONCE]
        report = partial(_report_progress, how.callback, tuned.objective.words.activity, begin, len(readable))
        predicted, problems = tuned.predict([question for _, question in part], report)
        for at, (row, _) in enumerate(part):
            row.prediction, row.problem = predicted.get(at), problems.get(at)
    _refuse_bad(rows, how.skip_bad_rows)


COMPLETING = {"answers": answer_rows, "pairs": answer_rows, "classes": classify}
"""By family, what gives each row that can be read its answer or its prediction, or its problem."""


def _check_answering(objective: Objective, changed: Sequence[str]) -> None:
    """ConfigError where settings of answers were changed that have no effect."""
    if changed and objective.classifier is not None:
        raise ConfigError([
            f"the setting {changed[0]} has no effect, because this run is a classifier. Leave it out."
        ])  # fmt: skip


def _report_progress(callback: Callback, activity: str, before: int, rows: int, done: int) -> None:
    callback(ProgressUpdate(activity, before + done, rows, "rows"))


def _check_out(out: Path, data: str | None, overwrite: bool) -> None:
    """Before anything is read."""
    check_name(out)
    check_place(out)
    if data is not None and out.exists() and Path(data).exists() and out.samefile(data):
        raise DataError(f"{out}: is the file of --data; give --out another name.")
    if out.exists() and not overwrite:
        raise DataError(f"{out}: already exists. Give --out another name, or add --overwrite.")


def _reading(run: RunSnapshot | None, data: str, prompt: str | None, system: str | None) -> DataConfig:
    how = {"prompt": prompt, "completion": f"{{{ANSWER}}}"} if prompt is not None else settings_of(run)
    return DataConfig(**{**how, "path": data, **({} if system is None else {"system": system})})


def _rows(reading: OpenedSource, form: str | None, most: int | None, *, has_prompt: bool) -> list[PredictedRow]:
    found = list[PredictedRow]()
    records = ((part, *record) for part in reading.parts for record in raw_records(part))
    for part, where, raw in islice(records, most):
        row = PredictedRow(where, {} if isinstance(raw, DataError) else raw)
        try:
            filled = raw | {ANSWER: PLACEHOLDER} if has_prompt and not isinstance(raw, DataError) else raw
            row.question = question_of(reading, part, where, filled, form)
        except DataError as error:
            row.problem = str(error)
        found.append(row)
    if not found:
        raise DataError(f"{reading.config.path}: holds no rows.")
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


def _refuse_bad(rows: Sequence[PredictedRow], skip: bool | None) -> None:
    problems = [row.problem for row in rows if row.problem is not None]
    if problems and not skip:
        way = "\n--on-bad-row skip answers the other rows and writes these problems into a column."
        raise DataError(f"{joined_problems(problems)}{'' if skip is None else way}")
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

    def as_values(self) -> dict[str, Any]:
        """What is predicted, for a Python program."""
        if self.prediction is not None:
            return self.prediction.as_values()
        assert self.answer is not None, "rows with problems were refused"
        return {"answer": self.answer.text, "stopped": self.answer.stopped}

    def as_text(self) -> str:
        """The answer alone, or what a classifier says, the likeliest first."""
        if self.prediction is None:
            return self.problem or "" if self.answer is None else self.answer.text
        said = self.prediction.as_shown()
        if "spans" in said:
            return "\n".join(f"{one['label']}  {one['text']}  {one['probability']:.1%}" for one in said["spans"])
        if said["value"] is not None:
            return f"{said['value']:.6g}"
        return "\n".join(f"{name}  {share:.1%}" for name, share in said["labels"][:MOST_SHOWN])
