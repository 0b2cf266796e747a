"""Measured values and differences with their intervals."""

from __future__ import annotations

from typing import Literal

from rankwise.config.base import Config

Verdict = Literal["better", "worse", "cannot tell"]
LEVEL = 0.05
"""Significance level of the paired test; intervals have level 1 - LEVEL."""


class Measured(Config):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(Config):
    """The difference b minus a over the same items, with its 95 % interval and the p-value of a paired test."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    verdict: Verdict
    """Verdict on b, which accounts for whether higher or lower is better."""

    @property
    def undecided(self) -> str | None:
        """Explain a missing verdict if interval and test disagree."""
        if self.verdict != "cannot tell" or (self.low <= 0 <= self.high and self.p >= LEVEL):
            return None
        if self.low <= 0 <= self.high:
            return f"the paired test has p = {self.p:.2g}, but the interval includes 0; a verdict needs both"
        return f"the interval excludes 0, but the paired test has p = {self.p:.2g}; a verdict needs p below {LEVEL:g}"


class PairResults(Config):
    """What a run over pairs came to on its validation pairs, by the weights that were saved."""

    pairs: int
    accuracy_before: float
    accuracy_after: Measured
    """Share of the pairs whose chosen answer is preferred, with its 95 % interval; an undecided pair counts half."""
    margin_before: float
    margin_after: float
    kl_from_base: float | None
    """KL(base || tuned) in nats per token of the answers of some of these pairs; None where all weights learned."""

    def describe(self) -> str:
        after = self.accuracy_after
        moved = "" if self.kl_from_base is None else f"; {self.kl_from_base:.4f} nats per token from the base"
        return (
            f"preference accuracy {self.accuracy_before:.1%} -> {after.value:.1%} "
            f"({after.low:.1%} to {after.high:.1%}) of {self.pairs:,} pairs; "
            f"margin {self.margin_before:.3f} -> {self.margin_after:.3f}{moved}"
        )
