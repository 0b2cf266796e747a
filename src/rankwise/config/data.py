"""Which rows are trained on, how they are read, and what is learned of them."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rankwise.config.base import Config, Number, PositiveInt, Seed
from rankwise.config.column_text import column_text
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import ConfigError

Format = Literal[
    "auto",
    "messages",
    "prompt",
    "text",
    "alpaca",
    "sharegpt",
    "dolly",
    "classification",
    "self-instruct",
    "oasst-trees",
]
TooLong = Literal["drop", "truncate", "cut-prompt", "split"]
OF_HUB = ("subset", "revision")
OF_TABLES = ("delimiter", "encoding", "sheet")
DELIMITER_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
BY = ("prompt", "completion", "columns")
"""What says of which columns a row is made."""
SHARED = (*BY, "labels", "alternatives", "ignore_columns")


def _given(spec: Config, name: str) -> bool:
    return getattr(spec, name) != type(spec).model_fields[name].get_default(call_default_factory=True)


class Reading(Config):
    """How one source is read."""

    format: Format = "auto"
    """Found by the keys of each file's first row."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where a field has another name: `instruction: question` reads the instruction from the column question."""
    prompt: str | None = None
    """What is asked, written from any columns: `Summarise: {dialogue}`. It goes with `completion`."""
    completion: str | None = None
    """The answer, likewise: `{summary}`. A column alone may hold a list of texts that are all right."""
    ignore_columns: tuple[str, ...] = ()
    """Columns without which each row is read, as if it had none of these names."""
    alternatives: Literal["first", "each"] = "first"
    """Of an answer that is given as a list of texts: learn the first, or make a row of each."""
    labels: tuple[str, ...] = ()
    """Names of the labels 0, 1, 2, … of a classification source."""
    split: str | None = None
    """Of a hub data set, or of a folder: the files that have this word in their names or folders (`my_test-1.jsonl` is
    of `test`). Without it the training files, and where there are none, those that are not for testing."""
    subset: str | None = None
    """Of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    rows: PositiveInt | None = None
    """Draw this many, by the seed; all without it."""
    licence: str | None = None
    """Of the data, where you know it."""
    delimiter: str | None = None
    """What separates the columns of a CSV or TSV file: comma, semicolon, tab, pipe, or another character. Detected
    without it."""
    encoding: str | None = None
    """Of a CSV or TSV file, such as utf-8, utf-16 or cp1252. Detected without it."""
    sheet: str | None = None
    """Which sheet of an Excel workbook. Without it the only one that has rows."""

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        value = DELIMITER_NAMES.get(value or "", value)
        if value is not None and (len(value) != 1 or value.isalnum() or value in '"\r\n\0'):
            raise ValueError(f"it is one character, or one of {', '.join(DELIMITER_NAMES)}")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            " ".encode(value or "utf-8")
        except (LookupError, ValueError):
            raise ValueError("no text encoding has this name; known are utf-8, utf-16, cp1252 and more") from None
        return value

    @field_validator("columns")
    @classmethod
    def _each_column_once(cls, value: dict[str, str]) -> dict[str, str]:
        twice = [column for column, times in Counter(value.values()).items() if times > 1]
        if twice:
            raise ValueError(f'the column "{twice[0]}" is named twice')
        return value

    @field_validator("ignore_columns", mode="before")
    @classmethod
    def _several_in_one(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

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

    @model_validator(mode="after")
    def _one_way_to_read(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            given, other = ("prompt", "completion") if self.completion is None else ("completion", "prompt")
            raise ValueError(f"{given} and {other} go together; {other} is not given")
        said = [name for name in ("format", "columns", "labels") if _given(self, name)]
        needed = [*self.columns.values()]
        needed += [name for text in (self.prompt, self.completion) for name in column_text(text or "").columns]
        if both := [name for name in self.ignore_columns if name in needed]:
            raise ValueError(f'the column "{both[0]}" is in ignore_columns, but the rows need it')
        if self.prompt is not None and said:
            raise ValueError(f"prompt and completion cannot be combined with {said[0]}; give one of them")
        return self


class Rows(Reading):
    """A file, a folder of files, or `hub:organisation/name`."""

    path: str = Field(min_length=1)
    system: str | None = None
    """A system message for rows of this source, instead of the one for all."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": os.fspath(value)} if isinstance(value, str | os.PathLike) else value

    @model_validator(mode="after")
    def _only_of_the_hub(self) -> Self:
        given = [name for name in OF_HUB if getattr(self, name) is not None]
        if given and not self.path.startswith("hub:"):
            raise ValueError(f"only a hub data set (hub:organisation/name) has a {given[0]}")
        given = [name for name in OF_TABLES if getattr(self, name) is not None]
        if given and self.path.startswith("hub:"):
            raise ValueError(f"{given[0]} applies to files, but {self.path} is a hub data set")
        return self


class SourceConfig(Rows):
    """Rows to train on."""

    weight: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """How often each row is seen in one pass: 2 is twice, 0.5 is half of the rows, drawn by the seed."""


class EvaluationConfig(Rows):
    """Rows to measure with, each of them once."""


class DataConfig(Reading):
    """One source (`path` and how it is read), or several (`sources`)."""

    path: Annotated[str, Field(min_length=1)] | None = None
    sources: tuple[SourceConfig, ...] = ()
    evaluation: EvaluationConfig | None = None
    """Rows of their own, never trained on; the loss on them is measured before and after."""
    held_out: Annotated[int, Field(ge=0, strict=True)] = 0
    """Instead of `evaluation`: N of the rows that are kept, of several sources each its share."""
    held_out_order: Literal["seed", "last"] = "seed"
    """`seed` draws them by data.seed, of each label its share where rows have labels; `last` takes the last ones."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """A column of the rows, such as a customer's number: rows with the same value are all held out or all trained on,
    so that N is approximate. A row without a value is alone."""
    recipe: str | None = None
    """A seed recipe: its template, its rule for long rows, and its settings under those given here."""
    system: str | None = None
    """A system message for rows that bring none. Beside `prompt` it may have {columns} in it too."""
    max_length: PositiveInt = 1024
    """Tokens."""
    too_long: TooLong = "drop"
    """`drop` leaves a longer row out and counts it; `truncate` cuts its end, and with it the end token; `cut-prompt`
    shortens what was asked, by characters; `split` makes of a long conversation several of whole turns."""
    learned: Literal["answers", "everything"] = "answers"
    answers: Literal["together", "apart"] = "together"
    """`apart` makes a row of each answer with all that was said before it: for templates that rewrite earlier turns."""
    packing: bool = False
    """Put several rows of a step into one, kept apart in attention and positions; the same result with less padding."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`skip` leaves out what cannot be read or rendered, and lists it in the data report."""
    seed: Seed = 0
    """For drawing rows by `rows`, `weight` and `held_out`."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone_and_recipe(cls, value: Any) -> Any:
        if isinstance(value, str | os.PathLike):
            return {"path": os.fspath(value)}
        name = value.get("recipe") if isinstance(value, dict) else None
        if isinstance(name, str) and name in RECIPES:
            return {**recipe_named(name).settings.get("data", {}), **value}
        return value

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str | None) -> str | None:
        if value is not None and value not in RECIPES:
            raise ValueError(f"known recipes are {', '.join(RECIPES)}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("name the rows to train on: a path, or several sources")
        said = (name for name in Reading.model_fields if _given(self, name))
        if self.sources and (extra := sorted(said)):
            raise ValueError(f"with several sources, write {extra[0]} in each of them")
        if self.held_out and self.evaluation is not None:
            raise ValueError("both held_out and evaluation choose the validation rows; give one of them")
        self._refuse_without_hold_out()
        try:
            _ = self.all_sources  # its own checks
        except ConfigError as error:
            raise ValueError("; ".join(problem.rstrip(".") for problem in error.problems)) from None
        return self

    def _refuse_without_hold_out(self) -> None:
        given = [f"group {self.group}"] if self.group is not None else []
        if not self.held_out and (given := given + ["held_out_order last"] * (self.held_out_order == "last")):
            raise ValueError(
                f"the setting {given[0]} has no effect without held_out; give held_out (--held-out N), or leave it out"
            )
        if self.group is not None and self.held_out_order == "last":
            raise ValueError(
                "with held_out_order last, groups cannot be kept together; leave out held_out_order or group"
            )

    @property
    def measured_source(self) -> EvaluationConfig | None:
        """The rows to measure with. Unless it says itself of which columns its rows are made, they are made of those
        that all rows to train on are made of."""
        own = self.evaluation
        if own is None or any(_given(own, name) for name in ("format", *BY)):
            return own
        every = [{name: getattr(source, name) for name in SHARED} for source in self.all_sources]
        shared = every[0] if all(one == every[0] for one in every) else {}
        return own.model_copy(update={name: value for name, value in shared.items() if not _given(own, name)})

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        if self.path is None:
            return self.sources
        return (SourceConfig(path=self.path, **{name: getattr(self, name) for name in Reading.model_fields}),)
