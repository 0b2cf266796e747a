"""Gain and forgetting as a function of adapter strength.

At strength s the weights are W + s (W' - W): the base at 0, the trained model at 1, and extrapolated beyond. Each model
is measured on its task, in nats per loss token, and on text that it was not trained on (forgetting.py). The
recommended strength is the smallest measured one, up to 1, that keeps 95 % of the largest gain:

    loss(0) - loss(s)  >=  0.95 max over t <= 1 of (loss(0) - loss(t))

If the largest gain is not significant (intervals.py), the recommendation is 1, or 0 if the trained model is
significantly worse than the base, with the reason. Nothing is interpolated, since that would recommend a strength that
was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from rankwise.evaluation.base_and_tuned import BaseAndTuned, Forward
from rankwise.evaluation.forgetting import change_of, compared, kl_of
from rankwise.evaluation.intervals import difference, measured
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.text import Text
from rankwise.runs.evaluations import StrengthCurve, StrengthPoint
from rankwise.runs.manifest import now
from rankwise.runs.measured import Difference
from rankwise.runs.records import Callback, silent

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5)
SHARE_OF_GAIN = 0.95

Scaled = Callable[[float], AbstractContextManager[None]]
"""Maps a strength to a context in which the model has it."""
TaskLoss = Callable[[], Sequence[Sequence[float]]]
"""Returns [nats, tokens] of each item for the current state of the model."""


def strength_curve(
    models: BaseAndTuned, scaled: Scaled, task_loss: TaskLoss, text: Text, *, task: str,
    strengths: Sequence[float] = STRENGTHS, callback: Callback = silent,
) -> StrengthCurve:  # fmt: skip
    """Measure the curve, always including strengths 0 and 1. `task` names what the losses belong to. Strength 0 is
    measured like any other, so a KL of 0 there is a result and not an assumption."""
    points_at = with_ends(strengths)
    losses = []
    for strength in points_at:
        with scaled(strength):
            losses.append(task_loss())
    tuned = [_at(models.tuned, scaled, strength) for strength in points_at]
    points = [
        StrengthPoint(
            strength=strength, loss=measured(METRICS["loss"], rows), kl=kl_of(blocks),
            delta_nll=change_of(blocks).value,
        )
        for strength, rows, blocks in zip(points_at, losses, compared(models.base, tuned, text, callback), strict=True)
    ]  # fmt: skip
    instead = untold(points, losses)
    return StrengthCurve(
        task=task, n=len(losses[0]), text=text.about, sha256=text.sha256, points=points,
        recommended=instead[0] if instead else recommended(points), why=instead[1] if instead else None, created=now(),
    )  # fmt: skip


def with_ends(strengths: Sequence[float]) -> list[float]:
    """Sort the strengths and add 0 and 1."""
    return sorted({0.0, 1.0, *strengths})


def _at(forward: Forward, scaled: Scaled, strength: float) -> Forward:
    def logits(ids: Tensor) -> Tensor:
        with scaled(strength):
            return forward(ids)

    return logits


def untold(points: Sequence[StrengthPoint], losses: Sequence[Sequence[Sequence[float]]]) -> tuple[float, str] | None:
    """Recommend a strength, with the reason, if no gain is significant. `losses` are the items' losses at each point,
    the base's first."""
    changes = {
        point.strength: difference(METRICS["loss"], losses[0], own)
        for point, own in zip(points, losses, strict=True) if 0 < point.strength <= 1
    }  # fmt: skip
    best = min(changes, key=lambda strength: changes[strength].b)
    if changes[best].verdict == "better":
        return None
    if changes[1.0].verdict == "worse":
        return 0.0, (
            f"which is the base model alone: at strength 1 the loss is significantly worse ({_change(changes[1.0])}), "
            "and "
            "at no strength up to 1 is it significantly better"
        )
    return 1.0, (
        f"no strength up to 1 lowers the loss significantly (at {best:g} it changes by {_change(changes[best])}), so "
        "1 is "
        "as good as any other"
    )


def _change(change: Difference) -> str:
    return f"{change.difference:+.3g}, {change.low:+.3g} to {change.high:+.3g}, n = {change.n:,}"


def recommended(points: Sequence[StrengthPoint]) -> float:
    """Return the recommended strength, or 1 if no strength up to 1 gains anything. The first point has strength 0."""
    gains = {point.strength: points[0].loss.value - point.loss.value for point in points if point.strength <= 1}
    largest = max(gains.values())
    return min(strength for strength, gain in gains.items() if gain >= SHARE_OF_GAIN * largest) if largest > 0 else 1.0
