"""What was claimed, what was measured, and what follows."""

from __future__ import annotations

from math import inf
from typing import Any, Literal

from rankwise.config.base import Config

Answer = Literal["holds", "does not hold", "cannot tell"]


class Claim(Config):
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


class Point(Config):
    """A run after `step` steps: what it does to its task, and to text that it never saw."""

    step: int
    rows: list[list[float]]
    """Of the items that are reported: nats and tokens."""
    blocks: list[list[float]]
    """Of the text: KL from the base, and positions."""
    whole: bool = True
    """False while AdaLoRA is above its budget."""

    @property
    def loss(self) -> float:
        return _share(self.rows)

    @property
    def kl(self) -> float:
        return _share(self.blocks)


class CellResult(Config):
    """One run of one method at one learning rate and seed."""

    points: list[Point]
    """From the base on; nothing after it where the run failed."""
    choosing: list[list[float]]
    """Of other items after the last step: nats and tokens. By these a learning rate is chosen."""
    outside: list[list[float]]
    """Of items of another source; empty where there is none."""
    seconds: float
    failed: str | None = None

    @property
    def choosing_loss(self) -> float:
        return _share(self.choosing) if self.failed is None else inf

    @property
    def rows(self) -> list[list[float]]:
        return self.points[-1].rows


def _share(sums: list[list[float]]) -> float:
    above, below = (sum(column) for column in zip(*sums, strict=True))
    return above / below


class Claims(Config):
    """The content of claims.json."""

    model: str
    mode: str
    claims: list[Claim]
    facts: dict[str, Any]
    """Of the measurements behind them."""
    seconds: float
