"""Gain against forgetting as a change of a model is turned up from nothing.

At each strength s the model is W + s (W' - W): between the base (0) and what was trained (1), and beyond. It is
measured on its task, in nats per learned token, and on text that it was not trained on (forgetting.py). The strength
that is recommended is the smallest of those measured, up to 1, that keeps 95 % of the largest gain any of them has:

    loss(0) - loss(s)  >=  0.95 max over t <= 1 of (loss(0) - loss(t))

Where the largest gain cannot be told from none, item by item (intervals.py), it is 1, or 0 where what was trained is
surely worse than the base, and that is said.
One between two of them would be a strength that nobody has measured, so none is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from rankwise.evaluation.base_and_tuned import Forward, Sides
from rankwise.evaluation.forgetting import change_of, compared, kl_of
from rankwise.evaluation.intervals import difference, measured
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.text import Text
from rankwise.runs.evaluations import Difference, StrengthCurve, StrengthPoint
from rankwise.runs.manifest import now
from rankwise.runs.records import Callback, silent

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5)
KEPT = 0.95

Turned = Callable[[float], AbstractContextManager[None]]
"""A strength to a context in which the model has it: `AdapterSet.scaled`, or one that moves whole weights."""
TaskLoss = Callable[[], Sequence[Sequence[float]]]
"""[nats, tokens] of each item, by the model as it is when called."""


def strength_curve(
    sides: Sides, turned: Turned, task_loss: TaskLoss, text: Text, *, task: str,
    strengths: Sequence[float] = STRENGTHS, callback: Callback = silent,
) -> StrengthCurve:  # fmt: skip
    """0 and 1 are measured also where `strengths` leaves them out. `task` is what the losses are of. The base is
    the model with its change taken off, so that a KL of 0 at strength 0 is measured and not assumed."""
    asked = with_ends(strengths)
    losses = []
    for strength in asked:
        with turned(strength):
            losses.append(task_loss())
    tuned = [_at(sides.tuned, turned, strength) for strength in asked]
    points = [
        StrengthPoint(
            strength=strength, loss=measured(METRICS["loss"], rows), kl=kl_of(blocks),
            delta_nll=change_of(blocks).value,
        )
        for strength, rows, blocks in zip(asked, losses, compared(sides.base, tuned, text, callback), strict=True)
    ]  # fmt: skip
    instead = untold(points, losses)
    return StrengthCurve(
        task=task, n=len(losses[0]), text=text.about, sha256=text.sha256, points=points,
        recommended=instead[0] if instead else recommended(points), why=instead[1] if instead else None, made=now(),
    )  # fmt: skip


def with_ends(strengths: Sequence[float]) -> list[float]:
    """In order, and with the base and what was trained."""
    return sorted({0.0, 1.0, *strengths})


def _at(forward: Forward, turned: Turned, strength: float) -> Forward:
    def logits(ids: Tensor) -> Tensor:
        with turned(strength):
            return forward(ids)

    return logits


def untold(points: Sequence[StrengthPoint], losses: Sequence[Sequence[Sequence[float]]]) -> tuple[float, str] | None:
    """What to take where there is no gain to keep, and why. `losses` are the items' at each point, of which the first
    is the base's."""
    changes = {
        point.strength: difference(METRICS["loss"], losses[0], own)
        for point, own in zip(points, losses, strict=True) if 0 < point.strength <= 1
    }  # fmt: skip
    best = min(changes, key=lambda strength: changes[strength].b)
    if changes[best].verdict == "better":
        return None
    if changes[1.0].verdict == "worse":
        return 0.0, (
            f"the base alone: at 1 the loss is surely worse ({_change(changes[1.0])}), and at no strength up to 1 is "
            "it surely better"
        )
    return 1.0, (
        f"at no strength up to 1 can a gain be told from none (at {best:g} the loss changes by "
        f"{_change(changes[best])}), so 1 is as good as any"
    )


def _change(found: Difference) -> str:
    return f"{found.difference:+.3g}, {found.low:+.3g} to {found.high:+.3g}, n = {found.n:,}"


def recommended(points: Sequence[StrengthPoint]) -> float:
    """1 where nothing is gained at any strength up to 1. The points begin with strength 0."""
    gains = {point.strength: points[0].loss.value - point.loss.value for point in points if point.strength <= 1}
    largest = max(gains.values())
    return min(strength for strength, gain in gains.items() if gain >= KEPT * largest) if largest > 0 else 1.0
