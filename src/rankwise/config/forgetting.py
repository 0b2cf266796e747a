"""Settings that hold a model to what it could: the anchor, which keeps it to its base on other text while it learns,
and replay, rows of other kinds among the training rows."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, field_validator

from rankwise.config.base import Config, Flag, Label, Number, PositiveInt, Separated
from rankwise.config.data import DataConfig, Reading, Rows
from rankwise.config.incompatible import Compatible

OWN_TEXT = "text that the base model wrote itself"
CODE_TEXT = "source code of Python's standard library"
BLOCKS = 256
"""At most so many blocks of the text are drawn from. A run of fewer steps sees none of them twice."""
TASK_ROWS = 400
ANSWER_TOKENS = 128
"""Tokens of an answer that the base writes, at most."""
DRAWS = 8
"""Answers to each instruction that the base writes, at most; a run that shows more replay rows repeats them."""


OF_RUN = "run:"


class AnchorConfig(Compatible):
    """Each step adds, to the loss of its rows, the divergence of the tuned model from its base on other text, so that
    the model forgets less. The base is the same weights with the adapter switched off."""

    sections = ("training.anchor",)
    text: Annotated[str | None, Flag("--anchor-text", "text that the base model writes")] = None
    """Text for the anchor: a plain text file, or a file, folder or hub data set whose rows have a `text`. It should
    differ from your rows and resemble what the model must still do well. By default the base model writes it from
    short openings of several kinds of text, once per base model; the text is cached."""
    code: bool = False
    """Every second step takes source code of Python's standard library, with its comments, in place of what the base
    writes. It keeps more of what the model knows of code, and less of its prose."""
    tokens: PositiveInt = 128
    """Tokens of that text in each step."""
    weight: Annotated[Number, Field(gt=0, le=1000), Flag("--anchor", "off"), Label("Hold to the base", "more")] = 1.0
    """KL regularisation: keep the model close to its base model on other text, with this weight, so that it forgets
    less; 1 is usual. The mean KL divergence per token, in nats, is multiplied by it and added to the loss."""
    forget_at_most: Annotated[float | str | None, Flag("--forget-at-most")] = None
    """Maximum forgetting of the result: `0.03` in nats per token of ordinary text, or `5%` in percentage points of
    accuracy on tasks. A number limits the KL divergence from the base model on ordinary text that is neither trained
    on nor used by the anchor. `weight` is then the largest weight: it falls while the measured divergence leaves room.
    A percentage limits the loss of accuracy on each of `tasks`. Either way, if the result has forgotten more, its
    update is scaled down until it stays within the limit."""
    tasks: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Separated, Flag("--accuracy-tasks")] = ()
    """Tasks for a limit in percent, separated by commas: built-in tasks (arc_easy, hellaswag, …) or YAML task files
    with answer choices, as for `rankwise evaluate --task`. They must not be trained on."""
    task_rows: Annotated[int, Field(ge=16, strict=True)] = TASK_ROWS
    """Rows of each of these tasks that are drawn. Half of them decide how far the change is scaled down; the result is
    measured on the other half."""

    @field_validator("forget_at_most", mode="before")
    @classmethod
    def _nats_or_points(cls, value: Any) -> float | str | None:
        if value is None:
            return None
        text = "" if isinstance(value, bool) else str(value).strip()
        try:
            amount = float(text.removesuffix("%"))
        except ValueError:
            amount = math.nan
        if not 0 < amount <= (100 if text.endswith("%") else 10):
            raise ValueError(
                "a number of nats per token is expected, above 0 and at most 10, such as 0.03; or percentage points of "
                "accuracy, such as 5%"
            )
        return f"{amount:g}%" if text.endswith("%") else amount

    @property
    def most_nats(self) -> float | None:
        return self.forget_at_most if isinstance(self.forget_at_most, float) else None

    @property
    def most_points(self) -> float | None:
        """Percentage points."""
        return float(self.forget_at_most[:-1]) if isinstance(self.forget_at_most, str) else None


class ReplayDataConfig(Rows):
    """Replay rows of your own. What holds for all rows, such as data.max_length, holds for them too. The path
    `run:NAME` means the training rows of that run, which are read as the run read them."""

    system: str | None = None
    """System message for replay rows that have none. That of the training rows (data.system) is not theirs."""

    @property
    def beside_run(self) -> list[str]:
        """The settings given here that the rows of a run bring along."""
        return [name for name in self.changed(*type(self).model_fields) if name != "path"]

    @property
    def run(self) -> str | None:
        """The run whose training rows are meant."""
        return self.path.removeprefix(OF_RUN) if self.path.startswith(OF_RUN) else None


class ReplayConfig(Config):
    """Shows other rows among the training rows, so that the model forgets less. They are never validation rows. The
    training rows come in the same order as without replay."""

    share: Annotated[Number, Field(gt=0, lt=1), Flag("--replay", "off"), Label("Share of replay rows", "more")] = 0.2
    """Share of replay rows among the rows trained on: with 0.2, one row in five. An epoch still shows every training
    row, so it has 1 / (1 - share) times as many steps."""
    data: Annotated[
        ReplayDataConfig | None, Flag("--replay-data", "the base model's own answers to general instructions")
    ] = None
    """Replay rows: a file, folder or hub data set in any row format, or `run:NAME` for the training rows of an earlier
    run, read with its columns and settings. By default they are the base model's own answers to 64 general
    instructions of several kinds and languages, at most 128 tokens each, sampled at temperature 1. The model writes
    them once for each base and chat template, and they are cached."""

    def rows_among(self, rows: int) -> int:
        """The replay rows of a pass that shows so many training rows."""
        return max(1, round(rows * self.share / (1 - self.share)))


def replay_rows(config: ReplayDataConfig, data: DataConfig) -> DataConfig:
    """The settings by which replay rows are read: their own, and those of the training rows where rows have none."""
    own = {name: getattr(config, name) for name in Reading.model_fields}
    return data.model_copy(
        update=own
        | {"path": config.path, "sources": (), "system": config.system, "validation": None, "held_out": 0,
           "held_out_order": "seed", "group": None}
    )  # fmt: skip
