"""Settings of replay: rows of other kinds among the training rows, so that the model goes on doing what it could."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rankwise.config.base import Config, Number
from rankwise.config.data import DataConfig, Reading, Rows

ANSWER_TOKENS = 128
"""Tokens of an answer that the base writes, at most."""
DRAWS = 8
"""Answers to each instruction that the base writes, at most; a run that shows more replay rows repeats them."""


class ReplayDataConfig(Rows):
    """Replay rows of your own."""


class ReplayConfig(Config):
    """Shows other rows among the training rows, so that the model forgets less. They are never validation rows, and
    what a run without replay shows is shown in the same order."""

    share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of replay rows in the rows that training shows: with 0.2, one row in five of the steps. A pass shows each
    training row as often as without replay, so it has more steps: 1 / (1 - share) times as many."""
    data: ReplayDataConfig | None = None
    """The replay rows: a file, folder or hub data set in any format of training rows. By default the base model answers
    64 general instructions of several kinds and languages, drawn at temperature 1, and is trained on its answers; it
    writes them once for each base and chat template, and they lie in the cache."""

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
