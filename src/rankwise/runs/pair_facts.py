"""What the data report says of pairs of answers, and how they are learned."""

from __future__ import annotations

from rankwise.config.base import Config
from rankwise.config.preference import PairLoss
from rankwise.runs.measured import Measured

OF_PAIRS = "nats per pair"


class AnswerFacts(Config):
    """Tokens of the chosen answers, or of the rejected ones, that the loss falls on."""

    median: int
    longest: int


class PairFacts(Config):
    """Pairs of a chosen and a rejected answer to one prompt."""

    loss: PairLoss
    beta: float
    prompts: bool = False
    """Whether the likelihood of orpo also covers the prompts."""
    rows: int
    """Pairs that can be used, validation rows that are held out from them included."""
    chosen: AnswerFacts | None = None
    """None where no tokens were counted."""
    rejected: AnswerFacts | None = None
    chosen_longer: float | None = None
    """Share of the pairs whose chosen answer is the longer one: what a model could learn is only to write more."""
    duplicates: int
    """Pairs that repeat an earlier pair."""
    contradictions: int
    """Pairs whose chosen answer another pair with the same prompt rejects, for the answer that this one rejects."""
    ties: int
    """Pairs left out because both answers are the same tokens."""

    def describe(self) -> str:
        return f"{self.rows:,} pairs are learned by {self.loss} with beta {self.beta:g}{self._lengths}"

    def doubts(self) -> str:
        """Counts of pairs that may be mistakes."""
        return (
            f"{self.duplicates:,} repeated, {self.contradictions:,} contradicting another, {self.ties:,} with two "
            "equal answers"
        )

    def counts(self) -> str:
        return f"{self.rows:,}{self._lengths}"

    @property
    def _lengths(self) -> str:
        if self.chosen is None or self.rejected is None:
            return ""
        return (
            f"; chosen answers have {self.chosen.median:,} tokens and rejected ones {self.rejected.median:,} "
            f"(medians), and the chosen answer is the longer one in {self.chosen_longer:.0%} of the pairs"
        )


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
