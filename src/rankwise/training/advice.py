"""From the sides that were measured to the advice: differences, the learning curve, the verdict and the cost.

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rankwise.evaluation.advised_rows import Side
from rankwise.runs.advice import Advice, AdviceCost, Advised, AdvisedSide, LabelAdvice, Reason, paragraph
from rankwise.runs.measured import Difference, Measurement
from rankwise.training.advising import Advising, Sides

LEAST, SHARE = 0.02, 0.02
SOLVED = 0.9
"""Share of exact answers, at the lower end of its interval, from which a task counts as solved."""
BLURRED = 0.25
"""The largest share of an answer's uncertainty that the question may still explain where nothing is said to depend on
it."""
FLATTENING = 0.5
MOST_ROWS = 100_000
SHORT_ANSWER = 16
"""Tokens of an answer, on average, up to which exact answers are shown."""
Decision = tuple[Advised, Reason, int | None]
"""The verdict, its reason, and the held-out rows that would decide where these do not."""


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

    def undecided(self, border: float = 0.0) -> Decision:
        """With the rows that an interval needs to leave the border on one side."""
        distance, half = abs(self.value - border), max(self.high - self.value, self.value - self.low)
        needed = self.rows * (half / distance) ** 2 if distance > 0 else MOST_ROWS
        return "undecided", "too few rows", min(MOST_ROWS, max(self.rows + 1, math.ceil(needed)))


@dataclass(frozen=True)
class Evidence:
    """Of a language model."""

    advice: ClassVar[type[Advice]] = Advice
    base: Measurement
    score: Measurement | None
    """Of the base."""
    gain: Gain
    untrained: Gain | None
    over_untrained: Gain | None
    content: Gain | None
    """How much lower the adapter's loss is behind the right question."""
    blurred: float | None
    """The adapter's loss behind other questions."""
    expected: float
    """What the full run is expected to gain beyond the short one."""

    @property
    def margin(self) -> float:
        """By the best loss without training: that of a base that has never seen the format may be huge."""
        untrained = 0.0 if self.untrained is None else self.untrained.value
        return margin_of(self.base.value - max(0.0, untrained))

    def shows_scores(self, tokens: float) -> bool:
        """Whether the rows' scores say something; their answers have so many tokens on average."""
        return tokens <= SHORT_ANSWER

    def curve(self, rows: int, part: int, examples: int) -> tuple[int, int]:
        """Rows at the end of the learning curve and at its beginning: those of the adapter."""
        return rows, part

    def decide(self) -> Decision:
        margin, gain, untrained, content = self.margin, self.gain, self.untrained, self.content
        if self.score is not None and self.score.low >= SOLVED:
            return "neither", "solved", None
        if content is not None and self.blurred is not None and content.low <= 0:  # it is not seen to use the questions
            return ("neither", "unrelated", None) if content.high < BLURRED * self.blurred else content.undecided()
        over = self.over_untrained
        hardest = over if over is not None and untrained is not None and untrained.value > 0 else gain
        if hardest.counts(margin):
            return "train", "better", None
        if untrained is not None and untrained.counts(margin):
            later = hardest.value + self.expected
            return ("prompt", "examples", None) if later < margin else ("undecided", "too short", None)
        if max(gain.value, untrained.value if untrained is not None else 0.0) + self.expected < margin:
            return "neither", "no gain", None
        return hardest.undecided(0.0 if hardest.value >= margin else margin)


@dataclass(frozen=True)
class LabelEvidence(Evidence):
    """Of a classifier."""

    advice: ClassVar[type[Advice]] = LabelAdvice

    def shows_scores(self, tokens: float) -> bool:
        return True

    def curve(self, rows: int, part: int, examples: int) -> tuple[int, int]:
        """Those of the probe."""
        return examples, examples // 2

    def decide(self) -> Decision:
        """A head begins at random, so the short adapter may still be behind a probe of the same features."""
        margin, gain, probe, content = self.margin, self.gain, self.untrained, self.content
        over = self.over_untrained
        learned = gain.counts(margin) and content is not None and content.low > 0
        if learned and (over is None or over.counts(margin)):
            return "train", "better", None
        if probe is not None and probe.counts(margin):
            return "train", "probe", None
        if learned:
            return "train", "better", None
        most = gain if probe is None or gain.value > probe.value else probe
        if most.value < margin and most.high < BLURRED * self.base.value:
            return "neither", "no gain", None
        return most.undecided()


EVIDENCE: Mapping[str, type[Evidence]] = {"sequence-classification": LabelEvidence}
"""By the objective; that of every other is of answers."""


def advice_of(advising: Advising, sides: Sides, forecast: float | None, warnings: tuple[str, ...]) -> Advice:
    design, adapter, best = advising.design, sides.adapter, sides.untrained
    gain, doubling = adapter.against(sides.base), sides.doubling
    untrained, over = (None, None) if best is None else (best.against(sides.base), adapter.against(best))
    content = sides.unrelated and sides.unrelated.against(adapter)
    evidence = EVIDENCE.get(advising.objective.name, Evidence)(
        base=sides.base.loss, score=sides.base.score, gain=Gain.of(gain), untrained=untrained and Gain.of(untrained),
        over_untrained=over and Gain.of(over),
        content=content and Gain(content.difference, content.low, content.high, content.n),
        blurred=sides.unrelated and sides.unrelated.loss.value,
        expected=0.0 if doubling is None else FLATTENING * max(0.0, doubling.value) * design.doublings,
    )  # fmt: skip
    verdict, reason, rows = evidence.decide()
    whole, part = len(advising.prepared.trained), design.part_rows
    curve = evidence.curve(whole, part, sides.examples)
    scored = evidence.shows_scores(_mean_tokens(sides.base))
    advice = evidence.advice(
        verdict=verdict, reason=reason,
        base=_shown(sides.base, scored or reason == "solved"), untrained=best and _shown(best, scored),
        adapter=_shown(adapter, scored), part=sides.part and _shown(sides.part, scored), examples=sides.examples,
        gain=gain, untrained_gain=untrained, over_untrained=over, content=content, doubling=doubling,
        margin=evidence.margin, rows_to_decide=rows, training_rows=curve[0], part_rows=curve[1],
        measured_rows=design.measured, unit=advising.prepared.data_report.learned.loss_unit, model=advising.model.facts,
        seed=advising.config.seed, warnings=warnings,
        cost=AdviceCost(
            full_steps=design.full_steps, short_steps=design.steps, part_steps=design.part_steps, work=design.work,
            forecast_seconds=forecast, seconds=sides.seconds, full_seconds=sides.step_seconds * design.full_steps,
        ),
    )  # fmt: skip
    return advice.model_copy(update={"text": paragraph(advice)})


def _shown(side: Side, scored: bool) -> AdvisedSide:
    return AdvisedSide(loss=side.loss, score=side.score if scored else None)


def _mean_tokens(side: Side) -> float:
    return sum(count for _, count in side.losses) / len(side.losses)
