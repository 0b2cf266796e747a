"""Settings of the data: which rows to train on, how to read them, and which tokens the loss falls on.

A prompt or an answer may be a text with column names in braces, such as `Summarise: {dialogue}`; `{{` and `}}` are
literal braces. Only the exact name of a column can stand between braces: no attribute, index or format. Filling the
text in therefore only looks names up, and never evaluates anything that a user or a file wrote.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rankwise.config.base import Config, Flag, Label, Number, PositiveInt, Seed, Separated
from rankwise.config.incompatible import Compatible
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import ConfigError

Format = Literal[
    "auto",
    "messages",
    "prompt",
    "input-output",
    "text",
    "alpaca",
    "sharegpt",
    "dolly",
    "classification",
    "image",
    "preference",
    "multiple-choice",
    "tokens",
    "spans",
    "self-instruct",
    "oasst-trees",
]
Reasoning = Literal["none", "learn", "mask"]
TooLong = Literal["drop", "truncate", "cut-prompt", "split"]
StoppingCheck = Literal["answer-in-prompt", "prompt-as-answer", "one-answer", "label-of-each-row"]
"""Checks of what rows mean that refuse a training (rows/report/meaning.py)."""
FEWEST_HELD_OUT, MOST_HELD_OUT = 50, 500
"""Rows of which a tenth is held out by default, and what is held out at most."""
OF_ANSWERS, INFER = ("answer_schema", "answer_choices", "answer_regex", "answer_grammar"), "infer"
"""Settings of what an answer may be, and the schema that is read out of the rows."""
OF_HUB = ("subset", "revision")
OF_TABLES = ("delimiter", "encoding", "sheet", "field")
DELIMITER_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
COLUMN_SETTINGS = ("prompt", "completion", "columns")
"""The settings that choose the columns of a row."""
SHARED = (*COLUMN_SETTINGS, "labels", "alternatives", "ignore_columns")
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Column:
    name: str


@dataclass(frozen=True)
class ColumnText:
    """A parsed column text: its literal texts and columns, in order."""

    parts: tuple[str | Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, each once, in order of appearance."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Column)))

    @property
    def single_file(self) -> str | None:
        """The column, if the text consists of one column and nothing else."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only.name if isinstance(only, Column) else None


def column_text(text: str) -> ColumnText:
    """Parse a column text; raises ValueError for braces that are empty or not closed."""
    parts: list[str | Column] = []
    for match in _PIECE.finditer(text):
        piece, name = match[0], match[1]
        if name is not None:
            if not name.strip():
                raise ValueError("its braces {} are empty; write the name of a column between them")
            parts.append(Column(name))
        elif piece in ("{", "}"):
            other = "}" if piece == "{" else "{"
            raise ValueError(
                f"the brace {piece} at character {match.start() + 1} has no {other}; write {piece}{piece} for a "
                "literal brace"
            )
        else:
            parts.append(piece[0] if piece in ("{{", "}}") else piece)
    return ColumnText(tuple(parts))


class Constraint(Config):
    """What an answer may be (constraints/constraint.py)."""

    kind: Literal["schema", "choices", "regex", "grammar"]
    text: str
    """The JSON Schema, the JSON list of choices, the regular expression, or the grammar in Lark's notation."""
    spaces: int = Field(1, ge=0, le=1000)
    """White space between two tokens of JSON at most: one space, or as many characters as the rows have."""

    def __hash__(self) -> int:
        return hash((self.kind, self.text, self.spaces))


Constrained = Constraint | Literal["own", "none"]
"""A constraint; or the run's own, if it has one; or none."""


class Reading(Compatible):
    """How the rows of one source are read."""

    sections = ("data",)
    format: Annotated[Format, Flag("--format"), Label("Row format", "rows")] = "auto"
    """Row format, such as `messages` or `alpaca`; `auto` detects it from the columns of each file's first row."""
    columns: Annotated[
        dict[str, str],
        Flag("--text", key="text", help="Column with the text to classify."),
        Flag("--text-pair", key="text_pair", help="Column with the second text, for text pairs."),
        Flag("--label", key="label", help="Column with the labels."),
    ] = Field(default_factory=dict)
    """Your own column names, as `{field: column}`: `instruction: question` reads the instruction from the column
    question."""
    prompt: Annotated[str | None, Flag("--prompt"), Label("Prompt", "columns", long=True)] = None
    """Prompt template with column names in braces: `Summarise: {dialogue}`. It needs `completion`."""
    completion: Annotated[str | None, Flag("--completion"), Label("Answer", "columns", long=True)] = None
    """Template for the answer, with column names in braces: `{summary}`. If it is a single column, the column may hold
    a list of alternative answers."""
    ignore_columns: Annotated[
        tuple[str, ...], Separated, Flag("--ignore-columns"), Label("Columns to ignore", "columns")
    ] = ()
    """Columns to ignore, separated by commas. The column of `data.group` may be one of them."""
    alternatives: Literal["first", "each"] = "first"
    """If an answer is a list of texts: train on the `first`, or make a row of `each`."""
    labels: tuple[str, ...] = ()
    """Names of the labels 0, 1, 2, … of classification rows and of images. The model is trained to answer with the
    name."""
    split: str | None = None
    """Which part of a hub data set or of a folder to read, for example `train`. It selects the files with this word in
    their file name or folder name (`my_test-1.jsonl` belongs to `test`). The default is the training files, or without
    such files, all files that are not meant for testing."""
    subset: str | None = None
    """Name of the subset, if a hub data set has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    rows: PositiveInt | None = None
    """Draw this many rows at random (by data.seed). The default is all rows."""
    licence: str | None = None
    """Licence of the data, if you know it. It is recorded in the data report and the model card."""
    delimiter: str | None = None
    """Column separator of a CSV or TSV file: comma, semicolon, tab, pipe, or any other character. By default it is
    detected."""
    encoding: str | None = None
    """Text encoding of a CSV or TSV file, such as utf-8, utf-16 or cp1252. By default it is detected."""
    sheet: str | None = None
    """Sheet of an Excel workbook. The default is the only sheet that has rows."""
    field: Annotated[str, Field(min_length=1)] | None = None
    """Where the rows are in a JSON file of one object: the key of their list, such as `data`, or a path of keys,
    `result.rows`. The default is `data`, if there is such a list."""

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        value = DELIMITER_NAMES.get(value or "", value)
        if value is not None and (len(value) != 1 or value.isalnum() or value in '"\r\n\0'):
            raise ValueError(f"it must be one character, or one of {', '.join(DELIMITER_NAMES)}")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            " ".encode(value or "utf-8")
        except (LookupError, ValueError):
            raise ValueError("no text encoding has this name; examples are utf-8, utf-16 and cp1252") from None
        return value

    @field_validator("columns")
    @classmethod
    def _each_column_once(cls, value: dict[str, str]) -> dict[str, str]:
        twice = [column for column, times in Counter(value.values()).items() if times > 1]
        if twice:
            raise ValueError(f'the column "{twice[0]}" is named twice')
        return value

    @field_validator("prompt", "completion")
    @classmethod
    def _closed_braces(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        columns = column_text(value).columns
        if not value.strip():
            raise ValueError("it is empty; write a text with {columns} in it")
        if info.field_name == "completion" and not columns:
            raise ValueError("it names no column in braces, so every answer would be the same; write {column}")
        return value

    @property
    def needed_columns(self) -> list[str]:
        """Columns to ignore that the rows need."""
        texts = (self.prompt, self.completion)
        needed = {*self.columns.values(), *(name for text in texts for name in column_text(text or "").columns)}
        return [name for name in self.ignore_columns if name in needed]


class Rows(Reading):
    """Rows from one place."""

    path: str = Field(min_length=1)
    """A file, a folder of files, or `hub:organisation/name`."""
    system: str | None = None
    """System message for rows of this source, instead of data.system."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": os.fspath(value)} if isinstance(value, str | os.PathLike) else value

    @property
    def on_hub(self) -> bool:
        return self.path.startswith("hub:")


class SourceConfig(Rows):
    """One of several sources of training rows."""

    weight: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """How often each row occurs in one pass: 2 is twice, and 0.5 is a random half of the rows."""


class ValidationDataConfig(Rows):
    """Validation rows in files of their own."""


class DataConfig(Reading):
    """Training and validation rows. A plain string is a path: `data: mydata.jsonl`.

    Give either `path` with its reading settings, or several `sources`.
    """

    path: Annotated[
        Annotated[str, Field(min_length=1)] | None, Flag("--data"), Label("Rows on this machine", "data")
    ] = None
    """Training rows: a file, a folder with files, or `hub:organisation/name`."""
    sources: tuple[SourceConfig, ...] = ()
    """Several sources of training rows, each with its own path and weight."""
    validation: Annotated[
        ValidationDataConfig | None, Flag("--validation-data"), Label("File of validation rows", "validation", "path")
    ] = None
    """Validation rows from separate files. They are never trained on."""
    held_out: Annotated[
        int | float | Literal["auto"],
        Flag("--held-out", "10 %, at most 500, if there are at least 50 rows"),
        Label("Or rows to hold out", "validation"),
    ] = "auto"
    """Training rows to hold out for validation: a number (120) or a share (0.1, 10%). Each of several sources gives
    its share. `auto` holds out 10 %, at most 500 rows, if there are at least 50 rows and neither `validation` nor
    `recipe` is given. 0 holds out none."""
    held_out_order: Annotated[Literal["seed", "last"], Flag("--held-out-order")] = "seed"
    """How to choose the held-out rows: `seed` samples them with data.seed, stratified by label if the rows have
    labels; `last` takes the last rows."""
    group: Annotated[
        Annotated[str, Field(min_length=1)] | None, Flag("--group"), Label("Column of groups", "validation")
    ] = None
    """Column that tells which rows belong together, such as a customer number. All rows with the same value are either
    held out or trained on, so the number of validation rows is approximate. A row without a value forms its own group.
    """
    recipe: Annotated[str | None, Field(description=f"The recipes are {', '.join(RECIPES)}."), Flag("--recipe")] = None
    """Train like a published model: use its chat template, its handling of long rows, and its settings unless you set
    your own. `rankwise data recipes` lists the recipes."""
    system: Annotated[str | None, Flag("--system"), Label("System message", "rows", long=True)] = None
    """System message for rows without one. If `prompt` is given, it may contain column names in braces too."""
    max_length: Annotated[
        PositiveInt, Flag("--max-length", "1024, or the recipe's"), Label("Longest row in tokens", "rows")
    ] = 1024
    """Maximum number of tokens in a row."""
    too_long: TooLong = "drop"
    """What happens to a longer row. `drop` leaves it out and counts it. `truncate` cuts its end, including the end
    token. `cut-prompt` shortens the prompt, by characters. `split` cuts a conversation into rows of whole turns."""
    learned: Literal["answers", "everything"] = "answers"
    """Tokens that the loss falls on: those of the answers, or all."""
    answers: Literal["together", "apart"] = "together"
    """How a conversation with several answers is trained on: `together` is one row with all its answers; `apart` makes
    one row of each answer and the turns before it, for chat templates that rewrite earlier turns."""
    reasoning: Annotated[
        Reasoning, Flag("--reasoning", "none: the model is asked not to reason"), Label("Reasoning in answers", "rows")
    ] = "none"
    """Reasoning in answers, between `<think>` and `</think>`: `learn` trains on it, and `mask` keeps it in the text
    but out of the loss. It may also be in a separate field (`reasoning_content`). Both values ask the model to reason.
    `none` asks it not to: the templates of reasoning models then write an empty `<think></think>` before the answer.
    Rows whose reasoning the template would drop are rejected."""
    packing: bool = False
    """Pack several rows of a step into one sequence, to compute less padding. Attention and positions keep the rows
    apart, so the result is the same."""
    on_bad_row: Annotated[Literal["stop", "skip"], Flag("--on-bad-row"), Label("A row that cannot be used", "rows")] = (
        "stop"
    )
    """What to do with a row that can't be used: `stop` ends with an error; `skip` leaves the row out and lists it in
    the data report."""
    accept: Annotated[tuple[StoppingCheck, ...], Separated] = ()
    """Checks of what rows mean that shall only warn and not stop the training, by the names that their errors give:
    with `answer-in-prompt`, rows are trained on although their labels stand in their prompts."""
    answer_schema: Annotated[str | None, Flag("--schema"), Label("JSON Schema of the answers", "rows")] = None
    """Structured outputs: a JSON Schema file that every answer must match, or `infer` to derive the schema from the
    answers in the rows. Rows that break it can't be used, and the run's answers always match it."""
    answer_choices: Annotated[tuple[str, ...], Separated, Flag("--choices")] = ()
    """The allowed answers, separated by commas."""
    answer_regex: Annotated[str | None, Flag("--regex")] = None
    """Regular expression that every whole answer must match."""
    answer_grammar: Annotated[str | None, Flag("--grammar")] = None
    """Lark grammar (file) that every answer must follow."""
    seed: Seed = 0
    """Seed of the random choices of `rows`, `weight` and `held_out`."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone_and_recipe(cls, value: Any) -> Any:
        if isinstance(value, str | os.PathLike):
            return {"path": os.fspath(value)}
        name = value.get("recipe") if isinstance(value, dict) else None
        if isinstance(name, str) and name in RECIPES:
            return {"held_out": 0, **recipe_named(name).settings.get("data", {}), **value}
        return value

    @field_validator("held_out", mode="before")
    @classmethod
    def _number_or_share(cls, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"\d*\.?\d+%?", value):
            number = float(value.rstrip("%"))
            value = number / 100 if "%" in value else int(number) if number.is_integer() else number
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not whole and value != "auto" and not (isinstance(value, float) and 0 < value < 1):
            raise ValueError("write a number of rows (120), a share of them (0.1 or 10%), 0 for none, or auto")
        return value

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str | None) -> str | None:
        if value is not None and value not in RECIPES:
            raise ValueError(f"known recipes are {', '.join(RECIPES)}")
        return value

    @model_validator(mode="after")
    def _sources_are_read(self) -> Self:
        try:
            _ = self.all_sources  # its own checks
        except ConfigError as error:
            raise ValueError("; ".join(problem.rstrip(".") for problem in error.problems)) from None
        return self

    @property
    def of_one_source(self) -> list[str]:
        """The settings given here that several sources have each for itself."""
        return sorted(self.changed(*Reading.model_fields))

    @property
    def may_hold_out(self) -> bool:
        return self.held_out != 0 and self.validation is None

    def held_out_of(self, rows: int) -> int:
        """How many of this many usable rows are held out."""
        if self.held_out == "auto":
            return min(rows // 10, MOST_HELD_OUT) if self.validation is None and rows >= FEWEST_HELD_OUT else 0
        return max(1, round(self.held_out * rows)) if isinstance(self.held_out, float) else self.held_out

    @property
    def not_of_pairs(self) -> list[str]:
        """The settings of its rows that have no effect where each is a pair of answers."""
        rows = [source for source in (*self.all_sources, self.measured_source) if source is not None]
        columns = [name for one in rows for name in one.changed("prompt", "completion", "labels", "alternatives")]
        formats = {source.format for source in rows} - {"auto", "preference"}
        return [*dict.fromkeys(columns), *(f"format {name}" for name in sorted(formats))]

    @property
    def measured_source(self) -> ValidationDataConfig | None:
        """The validation rows. If they set no columns, they use the ones that all training rows share."""
        own = self.validation
        if own is None or own.changed("format", *COLUMN_SETTINGS):
            return own
        given = own.changed(*self.shared)
        return own.model_copy(update={name: value for name, value in self.shared.items() if name not in given})

    @property
    def shared(self) -> dict[str, Any]:
        """The column settings that all training rows share; empty if sources differ."""
        every = [{name: getattr(source, name) for name in SHARED} for source in self.all_sources]
        return every[0] if all(one == every[0] for one in every) else {}

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        if self.path is None:
            return self.sources
        return (SourceConfig(path=self.path, **{name: getattr(self, name) for name in Reading.model_fields}),)
