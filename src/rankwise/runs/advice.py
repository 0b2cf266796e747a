"""What `rankwise advise` measured and concluded, as one value."""

from __future__ import annotations

from typing import Any, Literal

from rankwise.config.base import Config
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.measured import Difference, Measured

Advised = Literal["train", "prompt", "neither", "undecided"]
Reason = Literal["better", "examples", "probe", "solved", "unrelated", "no gain", "too few rows", "too short"]


class AdvisedSide(Config):
    """One way to answer the held-out rows."""

    loss: Measured
    score: Measured | None = None
    """The share of rows that are answered exactly, or of right classes."""


class AdviceCost(Config):
    """Work is counted in steps of the full run."""

    full_steps: int
    """Of the run that the settings describe."""
    short_steps: int
    part_steps: int
    """Of the adapter that learns from a part of the rows; 0 without one."""
    work: float
    """Steps that advising is worth, by the plan."""
    forecast_seconds: float | None
    seconds: float
    """That measuring took, without loading the model and reading the rows."""
    full_seconds: float
    """Of the steps of the full run, by the steps that were made."""

    @property
    def share(self) -> float:
        return self.seconds / self.full_seconds


class Advice(Config):
    verdict: Advised
    reason: Reason
    classifies: bool
    base: AdvisedSide
    """The base model; of a classifier the frequencies of the labels."""
    untrained: AdvisedSide | None
    """The base with examples in the prompt; of a classifier a linear probe of its features."""
    adapter: AdvisedSide
    """After the short training."""
    part: AdvisedSide | None
    """After the short training on a part of the rows; of a classifier a probe fitted on half of them."""
    examples: int
    """Examples in the prompt, or rows that the probe was fitted on."""
    gain: Difference
    """Loss of the adapter minus that of the base."""
    untrained_gain: Difference | None
    over_untrained: Difference | None
    """Loss of the adapter minus that of the base with examples, or of the probe."""
    content: Difference | None
    """Loss of the adapter behind other rows' questions minus that behind a row's own; None without questions."""
    doubling: Measured | None
    """What twice the rows, in as many passes, would lower the loss by."""
    margin: float
    """The least gain that counts, in the unit of the loss."""
    rows_to_decide: int | None
    """Held-out rows that would decide, where these do not."""
    training_rows: int
    """Rows at the end of the learning curve: those that the adapter learns from, or a classifier's probe."""
    part_rows: int
    """Rows at its beginning."""
    measured_rows: int
    """Held-out rows that were measured."""
    unit: str
    model: BaseModelFacts
    seed: int
    cost: AdviceCost
    warnings: tuple[str, ...] = ()
    text: str = ""
    """The advice in plain words."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise advise --json` prints."""
        return self.model_dump(mode="json") | {"share_of_full_run": self.cost.share}
