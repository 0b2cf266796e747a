"""How many triplets may live, as a pure function of the step.

    b(t) = first                                                  t <= warm-up
           last + (first - last) (1 - (t - ti) / (T - tf - ti))^3    until the final phase
           last                                                   from t = T - tf on

as in the authors' code; the paper's formula subtracts tf in the numerator too and does not meet its own ends. t counts
the optimizer steps done before this one. What a budget that was asked for comes to is in config/budget.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.budget import budget_of as budget_of


@dataclass(frozen=True)
class Schedule:
    """`warmup` and `final` count steps; `interval` is how many lie between two decisions."""

    first: int
    last: int
    warmup: int
    final: int
    steps: int
    interval: int

    @classmethod
    def of(cls, spec: AdaLoraConfig, first: int, last: int, steps: int) -> Schedule:
        interval = min(100, max(1, steps // 200)) if spec.interval == "auto" else spec.interval
        return cls(first, last, round(spec.warmup * steps), max(1, round(spec.final * steps)), steps, interval)

    @property
    def decided(self) -> int:
        """The first step of the final phase, after which the ranks stay."""
        return max(self.steps - self.final, 0)

    def budget(self, step: int) -> int:
        if step <= self.warmup:
            return self.first if step < self.decided else self.last
        if step >= self.decided:
            return self.last
        left = 1 - (step - self.warmup) / (self.decided - self.warmup)
        return int(self.last + (self.first - self.last) * left**3)

    def is_due(self, step: int) -> bool:
        return self.warmup < step < self.decided and step % self.interval == 0
