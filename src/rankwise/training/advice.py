"""From the sides that were measured to the advice: differences, the learning curve, the verdict and the cost."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.evaluation.advised_sides import Side
from rankwise.evaluation.advised_verdict import Evidence, Gain, decide
from rankwise.runs.advice import Advice, AdviceCost, AdvisedSide
from rankwise.runs.advice_text import paragraph
from rankwise.runs.measured import Difference, Measured
from rankwise.training.advising import Advising, Sides

SHORT_ANSWER = 16
"""Tokens of an answer, on average, up to which exact answers are shown."""


@dataclass(frozen=True)
class Differences:
    """Changes of the loss, row by row; lower is better."""

    gain: Difference
    untrained: Difference | None
    over: Difference | None
    content: Difference | None
    part: Difference | None
    doublings: float

    @classmethod
    def of(cls, sides: Sides) -> Differences:
        adapter = sides.adapter
        return cls(
            adapter.against(sides.base),
            sides.untrained and sides.untrained.against(sides.base),
            sides.untrained and adapter.against(sides.untrained),
            sides.unrelated and sides.unrelated.against(adapter),
            sides.part and sides.whole.against(sides.part),
            sides.doublings,
        )

    @property
    def doubling(self) -> Measured | None:
        """What the loss fell by for each doubling of rows and steps."""
        if self.part is None:
            return None
        value, low, high = (-one / self.doublings for one in (self.part.difference, self.part.high, self.part.low))
        return Measured(value=value, low=low, high=high)


def evidence_of(sides: Sides, apart: Differences, doublings: float, *, classifies: bool) -> Evidence:
    content, doubling = apart.content, apart.doubling
    return Evidence(
        base=sides.base.loss, score=sides.base.score, gain=Gain.of(apart.gain),
        untrained=apart.untrained and Gain.of(apart.untrained), over_untrained=apart.over and Gain.of(apart.over),
        content=content and Gain(content.difference, content.low, content.high, content.n),
        blurred=sides.unrelated and sides.unrelated.loss.value,
        doubling=0.0 if doubling is None else doubling.value, doublings=doublings, classifies=classifies,
    )  # fmt: skip


def advice_of(advising: Advising, sides: Sides, forecast: float | None, warnings: tuple[str, ...]) -> Advice:
    design, report = advising.design, advising.prepared.data_report
    classifies, apart = advising.objective.targets is not None, Differences.of(sides)
    evidence = evidence_of(sides, apart, design.doublings, classifies=classifies)
    decision = decide(evidence)
    every, part = len(advising.prepared.trained), design.part_rows
    curve = (sides.examples, sides.examples // 2) if classifies else (every, part)
    scored = classifies or _mean_tokens(sides.base) <= SHORT_ANSWER
    advice = Advice(
        verdict=decision.verdict, reason=decision.reason, classifies=classifies,
        base=_shown(sides.base, scored=scored or decision.reason == "solved"),
        untrained=sides.untrained and _shown(sides.untrained, scored=scored),
        adapter=_shown(sides.adapter, scored=scored), part=sides.part and _shown(sides.part, scored=scored),
        examples=sides.examples, gain=apart.gain, untrained_gain=apart.untrained, over_untrained=apart.over,
        content=apart.content, doubling=apart.doubling, margin=evidence.margin,
        rows_to_decide=decision.rows_to_decide, training_rows=curve[0], part_rows=curve[1],
        measured_rows=design.measured, unit=report.loss_unit, model=advising.model.facts, seed=advising.config.seed,
        warnings=warnings,
        cost=AdviceCost(
            full_steps=design.full_steps, short_steps=design.steps, part_steps=design.part_steps, work=design.work,
            forecast_seconds=forecast, seconds=sides.seconds, full_seconds=sides.step_seconds * design.full_steps,
        ),
    )  # fmt: skip
    return advice.model_copy(update={"text": paragraph(advice)})


def _shown(side: Side, *, scored: bool) -> AdvisedSide:
    return AdvisedSide(loss=side.loss, score=side.score if scored else None)


def _mean_tokens(side: Side) -> float:
    return sum(count for _, count in side.losses) / len(side.losses)
