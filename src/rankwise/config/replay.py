"""Settings of replay: rows of other kinds among the training rows, so that the model goes on doing what it could."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rankwise.config.base import Config, Number
from rankwise.config.data import DataConfig, Reading, Rows

ANSWER_TOKENS = 128
"""Tokens of an answer that the base writes, at most."""
DRAWS = 8
"""Answers to each instruction that the base writes, at most; a run that shows more replay rows repeats them."""


OF_RUN = "run:"


class ReplayDataConfig(Rows):
    """Replay rows of your own. What holds for all rows, such as data.max_length, holds for them too. The path
    `run:NAME` means the training rows of that run, which are read as the run read them."""

    system: str | None = None
    """System message for replay rows that have none. That of the training rows (data.system) is not theirs."""

    @model_validator(mode="after")
    def _run_alone(self) -> Self:
        defaults = Rows.model_construct(path=self.path)
        given = [name for name, value in self if value != getattr(defaults, name)]
        if self.run is not None and given:
            raise ValueError(f"{self.path} is read as the run read its rows; leave out {given[0]}")
        return self

    @property
    def run(self) -> str | None:
        """The run whose training rows are meant."""
        return self.path.removeprefix(OF_RUN) if self.path.startswith(OF_RUN) else None


class ReplayConfig(Config):
    """Shows other rows among the training rows, so that the model forgets less. They are never validation rows. The
    training rows come in the same order as without replay."""

    share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of replay rows in the rows that training shows: with 0.2, one row in five. A pass still shows every
    training row, so it has 1 / (1 - share) times as many steps."""
    data: ReplayDataConfig | None = None
    """The replay rows: a file, folder or hub data set in any format of training rows, or `run:NAME` for the training
    rows of an earlier run, read with its columns and settings. By default they are the base model's own answers to 64
    general instructions of several kinds and languages, of at most 128 tokens, drawn at temperature 1. It writes them
    once for each base and chat template, and they lie in the cache."""

    def rows_among(self, own: int) -> int:
        """The replay rows of a pass that shows so many training rows."""
        return max(1, round(own * self.share / (1 - self.share)))


def replay_rows(config: ReplayDataConfig, data: DataConfig) -> DataConfig:
    """The settings by which replay rows are read: their own, and those of the training rows where rows have none."""
    own = {name: getattr(config, name) for name in Reading.model_fields}
    return data.model_copy(
        update=own
        | {"path": config.path, "sources": (), "system": config.system, "validation": None, "held_out": 0,
           "held_out_order": "seed", "group": None}
    )  # fmt: skip
