"""The record of how a run's learning rate was chosen by short trials (training/tuning.py), as the manifest keeps it."""

from __future__ import annotations

from typing import Literal

from rankwise.config.base import Config


class TrialFacts(Config):
    """One training of a few steps."""

    stage: int
    """0 is the search for the rates that diverge; the others are the stages of successive halving."""
    learning_rate: float
    """The highest of its schedule."""
    stands_for: float
    """The rate of the run, whose steps have more rows."""
    steps: int
    batch_size: int
    loss: float | None
    """On the rows apart; None where training diverged, and for the range, which is not measured."""


class Tuning(Config):
    """How the learning rate was chosen. Without trials it is the default, and `why` names the reason."""

    learning_rate: float
    default: float
    """What `auto` would have been."""
    why: str
    trials: tuple[TrialFacts, ...] = ()
    loss_before: float | None = None
    """On the same rows, before training."""
    rows: int = 0
    """Rows that the trials were measured on."""
    rows_from: Literal["validation", "training", "nowhere"] = "nowhere"
    """`training`: rows that trials set aside, and that the run itself learns from."""
    flat_from: float | None = None
    """From this rate to `flat_to` the trials' losses are less than one percent above the least."""
    flat_to: float | None = None
    seconds: float = 0.0
    """That the trials took."""
    forecast_seconds: float | None = None
    steps: float = 0.0
    """What the trials cost, in steps of the run, by the number of tokens."""

    def lines(self) -> list[str]:
        """For the terminal: what was chosen and why, and the table of the trials."""
        if not self.trials:
            return [f"learning rate {self.learning_rate:.3g}: {self.why}"]
        table = [
            f"  {one.stands_for:<10.3g}{one.steps:>3} steps of {one.batch_size} rows at {one.learning_rate:<10.3g}"
            + ("diverged" if one.loss is None else f"{one.loss:.4f}")
            for one in self.trials
            if one.stage
        ]
        return [f"learning rate {self.learning_rate:.3g}, chosen by {len(self.trials)} trials: {self.why}",
                "  rate      trial                               loss", *table]  # fmt: skip
