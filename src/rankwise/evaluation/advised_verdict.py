"""From measured differences to a verdict: train, prompt with examples, neither, or undecided.

    solved        the base's answers are already the rows', or neither way gains more than the margin
    unrelated     the adapter's answers do not depend on the questions: what it learned is how answers look
    train         the adapter is better than the best way without training by more than the margin
    prompt        examples gain as much as the adapter will
    undecided     an interval reaches to both sides of a border

A classifier is worth training where its adapter, or a linear probe of its frozen features, is better than the
frequencies of the labels. The margin is the least gain that counts: a fiftieth of the best loss without training, and
no less than 0.02. The full run is expected to gain more than the short one: by half of what the learning curve promises
for each doubling from the short run's length to the full one's, since such curves flatten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankwise.runs.advice import Advised, Reason
from rankwise.runs.measured import Difference, Measured

LEAST, SHARE = 0.02, 0.02
SOLVED = 0.9
"""Share of exact answers, at the lower end of its interval, from which a task counts as solved."""
BLURRED = 0.25
"""The largest share of an answer's uncertainty that the question may still explain where nothing is said to depend on
it."""
FLATTENING = 0.5
MOST_ROWS = 100_000


def margin_of(loss: float) -> float:
    return max(LEAST, SHARE * loss)


@dataclass(frozen=True)
class Gain:
    """How much lower a loss is, with its interval."""

    value: float
    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, change: Difference) -> Gain:
        """From a change of the loss."""
        return cls(-change.difference, -change.high, -change.low, change.n)

    def counts(self, margin: float) -> bool:
        """Whether it is seen, and as large as the margin."""
        return self.low > 0 and self.value >= margin

    def rows_against(self, border: float) -> int:
        """How many rows an interval needs that leaves the border on one side."""
        distance, half = abs(self.value - border), max(self.high - self.value, self.value - self.low)
        needed = self.rows * (half / distance) ** 2 if distance > 0 else MOST_ROWS
        return min(MOST_ROWS, max(self.rows + 1, math.ceil(needed)))


@dataclass(frozen=True)
class Evidence:
    base: Measured
    score: Measured | None
    """Of the base."""
    gain: Gain
    untrained: Gain | None
    over_untrained: Gain | None
    content: Gain | None
    """How much lower the adapter's loss is behind the right question."""
    blurred: float | None
    """The adapter's loss behind other questions."""
    doubling: float
    """What the curve promises for twice the rows and steps."""
    doublings: float
    """From the short run to the full one."""
    classifies: bool = False

    @property
    def margin(self) -> float:
        """By the best loss without training: that of a base that has never seen the format may be huge."""
        untrained = 0.0 if self.untrained is None else self.untrained.value
        return margin_of(self.base.value - max(0.0, untrained))

    @property
    def expected(self) -> float:
        """What the full run is expected to gain beyond the short one."""
        return FLATTENING * max(0.0, self.doubling) * self.doublings


@dataclass(frozen=True)
class Decision:
    verdict: Advised
    reason: Reason
    rows_to_decide: int | None = None


def decide(evidence: Evidence) -> Decision:
    if evidence.classifies:
        return _of_labels(evidence)
    margin, gain, untrained = evidence.margin, evidence.gain, evidence.untrained
    if evidence.score is not None and evidence.score.low >= SOLVED:
        return Decision("neither", "solved")
    if (without := _without_content(evidence)) is not None:
        return without
    over = evidence.over_untrained
    hardest = over if over is not None and untrained is not None and untrained.value > 0 else gain
    if hardest.counts(margin):
        return Decision("train", "better")
    if untrained is not None and untrained.counts(margin):
        later = hardest.value + evidence.expected
        return Decision("prompt", "examples") if later < margin else Decision("undecided", "too short")
    if max(gain.value, untrained.value if untrained is not None else 0.0) + evidence.expected < margin:
        return Decision("neither", "no gain")
    return Decision("undecided", "too few rows", hardest.rows_against(0.0 if hardest.value >= margin else margin))


def _of_labels(evidence: Evidence) -> Decision:
    """A head begins at random, so the short adapter may still be behind a probe of the same features."""
    margin, gain, probe, content = evidence.margin, evidence.gain, evidence.untrained, evidence.content
    over = evidence.over_untrained
    learned = gain.counts(margin) and content is not None and content.low > 0
    if learned and (over is None or over.counts(margin)):
        return Decision("train", "better")
    if probe is not None and probe.counts(margin):
        return Decision("train", "probe")
    if learned:
        return Decision("train", "better")
    most = max((one for one in (probe, gain) if one is not None), key=lambda one: one.value)
    if most.value < margin and most.high < BLURRED * evidence.base.value:
        return Decision("neither", "no gain")
    return Decision("undecided", "too few rows", most.rows_against(0.0))


def _without_content(evidence: Evidence) -> Decision | None:
    """Where the adapter does not use the questions, or it is not seen to."""
    content, blurred = evidence.content, evidence.blurred
    if content is None or blurred is None or content.low > 0:
        return None
    if content.high < BLURRED * blurred:
        return Decision("neither", "unrelated")
    return Decision("undecided", "too few rows", content.rows_against(0.0))
