"""What the data report says of pairs of answers, and how they are learned."""

from __future__ import annotations

from rankwise.config.base import Config
from rankwise.config.preference import PairLoss

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
