"""A number that is not known exactly: what it is likely to be, and between what it lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    low: float
    likely: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.likely <= self.high, self

    @classmethod
    def exactly(cls, value: float) -> Estimate:
        return cls(value, value, value)

    @classmethod
    def within(cls, value: float, error: float, *, least: float = 0.0) -> Estimate:
        """`error` to both sides."""
        return cls(max(min(least, value), value - error), value, value + error)

    @property
    def exact(self) -> bool:
        return self.low == self.high

    def plus(self, other: Estimate) -> Estimate:
        return Estimate(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> Estimate:
        assert factor >= 0, factor
        return Estimate(self.low * factor, self.likely * factor, self.high * factor)

    def over(self, rate: Estimate) -> Estimate:
        return Estimate(self.low / rate.high, self.likely / rate.likely, self.high / rate.low)

    def at_least(self, other: Estimate) -> Estimate:
        return Estimate(max(self.low, other.low), max(self.likely, other.likely), max(self.high, other.high))
