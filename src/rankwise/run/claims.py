"""What was claimed, what was measured, and what follows."""

from __future__ import annotations

from typing import Any, Literal

from rankwise.spec.spec import Spec

Answer = Literal["holds", "does not hold", "cannot tell"]


class Claim(Spec):
    """`value` with its 95 % interval is a factor, a difference of losses in nats per token, or a ratio of KL."""

    claim: str
    answer: Answer
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    """Items, or where each run gives one number, runs."""
    seeds: int = 1
    wanted: str
    """What it takes to hold."""
    why: str | None = None


class Point(Spec):
    """A run after `step` steps: loss on its task in nats per token, and what it does to text it never saw."""

    step: int
    loss: float
    kl: float
    delta_nll: float


class CellResult(Spec):
    """One run of one method at one learning rate and seed."""

    points: list[Point]
    """From the base on."""
    rows: list[list[float]]
    """Of the measured items after the last step: nats and tokens."""
    choosing: float
    """The loss after the last step on other items, by which a learning rate is chosen."""
    outside: list[list[float]]
    """Of items of another source; empty where there is none."""
    trainable: int
    seconds: float


class Claims(Spec):
    """What `rankwise claims --json` prints."""

    model: str
    mode: str
    claims: list[Claim]
    facts: dict[str, Any]
    """Of the measurements behind them."""
    seconds: float
