"""What `rankwise advise` measured and concluded, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from rankwise.config.base import Config
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.measured import Difference, Measurement

Advised = Literal["train", "prompt", "neither", "undecided"]
Reason = Literal["better", "examples", "probe", "solved", "unrelated", "no gain", "too few rows", "too short"]
VERDICTS = {
    "train": "Train", "prompt": "Prompt with examples", "neither": "Neither pays", "undecided": "Undecided",
}  # fmt: skip


class AdvisedSide(Config):
    """One way to answer the held-out rows."""

    loss: Measurement
    score: Measurement | None = None
    """The share of rows that are answered exactly, or of right classes."""


class AdviceCost(Config):
    """Work is counted in steps of the full run."""

    full_steps: int
    """Steps of the full run that the settings describe."""
    short_steps: int
    part_steps: int
    """Steps of the adapter that learns from a part of the rows; 0 without one."""
    work: float
    """Steps that advising is worth, by the plan."""
    forecast_seconds: float | None
    seconds: float
    """That measuring took, without loading the model and reading the rows."""
    full_seconds: float
    """The time that the full run would take, estimated from the steps that were made."""

    @property
    def share(self) -> float:
        return self.seconds / self.full_seconds


class Advice(Config):
    """On a language model; that on a classifier says what is other."""

    untested: ClassVar[str] = "The rows have no questions, so it was not tested whether the answers depend on them."
    learner: ClassVar[str] = "the loss"
    """Whose learning curve it is."""
    passes: ClassVar[str] = ", in as many passes"
    score_name: ClassVar[str] = "exact"
    advised: ClassVar[str] = "begin with the head alone (--method head)"
    verdict: Advised
    reason: Reason
    classifies: bool = False
    base: AdvisedSide
    """The base model; of a classifier the frequencies of the labels."""
    untrained: AdvisedSide | None
    """The base with examples in the prompt; of a classifier its head fitted to the frozen model."""
    adapter: AdvisedSide
    """After the short training."""
    part: AdvisedSide | None
    """After the short training on a part of the rows; of a classifier its head fitted on half of them."""
    examples: int
    """Examples in the prompt, or rows that the head was fitted on."""
    gain: Difference
    """Loss of the adapter minus that of the base."""
    untrained_gain: Difference | None
    over_untrained: Difference | None
    """Loss of the adapter minus that of the base with examples, or of the fitted head."""
    content: Difference | None
    """Loss of the adapter behind other rows' questions minus that behind a row's own; None without questions, and of
    a classifier, whose gain over the frequencies of the labels says it."""
    doubling: Measurement | None
    """What twice the rows, in as many passes, would lower the loss by."""
    margin: float
    """The least gain that counts, in the unit of the loss."""
    rows_to_decide: int | None
    """Held-out rows that would decide, where these do not."""
    training_rows: int
    """Rows at the end of the learning curve: those that the adapter learns from, or a classifier's fitted head."""
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

    @property
    def names(self) -> tuple[str, str, str, str]:
        """The names of the four quantities that were measured."""
        examples = "example" if self.examples == 1 else "examples"
        part = f"adapter, {self.cost.part_steps} steps on {self.part_rows:,} rows"
        return "base", f"base with {self.examples} {examples}", f"adapter, {self.cost.short_steps} steps", part


class LabelAdvice(Advice):
    """On a classifier."""

    untested, learner = "", "the loss of the fitted head"
    passes = ""
    score_name = "accuracy"
    fitted: ClassVar[str] = "head fitted to the frozen model"
    classifies: bool = True

    @property
    def names(self) -> tuple[str, str, str, str]:
        fitted, short = self.fitted, f"adapter, {self.cost.short_steps} steps"
        half = f"{fitted}, {self.part_rows:,} rows"
        return "frequencies of the labels", f"{fitted}, {self.examples:,} rows", short, half


def lines_of(advice: Advice) -> list[str]:
    """The table, the paragraph, and what it cost."""
    return [
        f"{advice.measured_rows:,} held-out rows, {advice.unit}, intervals of 95 %",
        *table(advice),
        "",
        advice.text,
        "",
        cost(advice),
    ]


def table(advice: Advice) -> list[str]:
    sides = zip(advice.names, (advice.base, advice.untrained, advice.adapter, advice.part), strict=True)
    rows = [(name, side) for name, side in sides if side is not None]
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  loss {side.loss.shown('.4f')}{_score(side, advice)}" for name, side in rows]


def paragraph(advice: Advice) -> str:
    """The verdict with its reasons, and whether more rows would help, in plain words."""
    sentences = [f"{VERDICTS[advice.verdict]}.", _verdict(advice), *_content(advice), _rows(advice)]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def cost(advice: Advice) -> str:
    one = advice.cost
    forecast = "" if one.forecast_seconds is None else f" (forecast {_clock(one.forecast_seconds)})"
    return (
        f"This took {_clock(one.seconds)}{forecast}, {one.share:.0%} of the {one.full_steps:,} steps of a full run, "
        f"which would take {_clock(one.full_seconds)}."
    )


REASONS: dict[Reason, str] = {
    "better": "{gain}.",
    "examples": "the loss of the {untrained} is {untrained_gain} than that of the {base}, and a full run is expected "
    "to gain {expected} beyond that: {gain}.",
    "probe": "the labels can be learned: the loss of the {untrained} is {untrained_gain} than that of the {base}. "
    "{gain}, so {advised}, and see whether a long run of an adapter does better.",
    "solved": "the task is solved already: the base answers {share} of the rows exactly.",
    "unrelated": "the answers do not depend on the questions: {gain}, but it is no higher when the questions of other "
    "rows stand before the answers. What was learned is which answers occur and how they are written.",
    "no gain": "there is nothing to gain: {gain}, and a full run is expected to gain {expected}.",
    "too short": "{gain}, and the learning curve says that a full run may overtake the {untrained}. Ask again with "
    "more --steps, or train and compare.",
    "too few rows": "{gain}; the intervals reach to both sides of what would decide. About {rows} held-out rows would "
    "decide (--held-out).",
}


def _verdict(advice: Advice) -> str:
    base, untrained, _, _ = advice.names
    over = advice.over_untrained
    gain = f"the short adapter's loss is {_lower(advice.gain)} than that of the {base}"
    gain += "" if over is None else f", and {_lower(over)} than that of the {untrained}"
    sentence = REASONS[advice.reason].format(
        gain=gain, base=base, untrained=untrained, untrained_gain=_lower_of(advice.untrained_gain),
        expected=f"less than the {advice.margin:.2g} that count", rows=f"{advice.rows_to_decide or 0:,}",
        share=_share(advice.base), advised=advice.advised,
    )  # fmt: skip
    return sentence.replace(". the", ". The")


def _content(advice: Advice) -> list[str]:
    if advice.content is None:
        return [advice.untested] * bool(advice.untested)
    if advice.reason in ("unrelated", "solved"):
        return []
    seen = "depend" if advice.content.low > 0 else "are not seen to depend"
    return [f"With the questions of other rows the adapter's loss changes by {_interval(advice.content, 1)}, so its "
            f"answers {seen} on the questions."]  # fmt: skip


def _rows(advice: Advice) -> str:
    if advice.doubling is None:
        return "There are too few rows for a learning curve."
    if advice.reason == "unrelated":
        return "More rows of this kind would not help."
    one = advice.doubling
    gain = f"{_number(one.value)} ({_number(one.low)} to {_number(one.high)})"
    curve = (
        f"from {advice.part_rows:,} to {advice.training_rows:,} rows {advice.learner} falls by {gain} for each doubling"
    )
    if advice.doubling.low > 0 and advice.doubling.value >= advice.margin:
        return f"More rows would help: {curve}{advice.passes}; a full run gains less from them."
    if advice.doubling.high < advice.margin:
        return f"More rows would hardly help: {curve}."
    return f"Whether more rows would help is not clear: {curve}."


def _lower(difference: Difference) -> str:
    return f"{_interval(difference, -1)} lower" if difference.difference <= 0 else f"{_interval(difference, 1)} higher"


def _lower_of(difference: Difference | None) -> str:
    return "no lower" if difference is None else _lower(difference)


def _interval(difference: Difference, sign: int) -> str:
    ends: Sequence[float] = sorted((sign * difference.low, sign * difference.high))
    return f"{_number(sign * difference.difference)} ({_number(ends[0])} to {_number(ends[1])})"


def _number(value: float) -> str:
    """Three places, and no sign before zero."""
    text = f"{value:.3f}"
    return text if float(text) else "0.000"


def _score(side: AdvisedSide, advice: Advice) -> str:
    if side.score is None:
        return ""
    return f"   {advice.score_name} {side.score.shown('.1%')}"


def _share(side: AdvisedSide) -> str:
    return "all" if side.score is None else side.score.shown(".0%")


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
