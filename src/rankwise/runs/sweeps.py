"""The record of a sweep: which settings were varied, and what each trial, an ordinary run, came to."""

from __future__ import annotations

from typing import Any

from rankwise.config.base import Config

FLAT = 0.01
"""Losses that are less than this share above the least count as equally good."""


class SweptTrial(Config):
    number: int
    run: str
    values: dict[str, Any]
    loss: float | None
    """The validation loss of the run's result; None where it failed or diverged."""
    seconds: float | None = None
    problem: str | None = None


class SweepRecord(Config):
    name: str
    axes: dict[str, str]
    """What was given for each setting."""
    method: str
    """`grid`, or the sampler that chose the values."""
    planned: int
    trials: tuple[SweptTrial, ...]
    unit: str = "nats per loss token"

    @property
    def finished(self) -> list[SweptTrial]:
        """The best first."""
        return sorted((one for one in self.trials if one.loss is not None), key=lambda item: item.loss or 0.0)

    @property
    def best(self) -> SweptTrial | None:
        return next(iter(self.finished), None)

    def curve(self, key: str) -> list[tuple[Any, float]]:
        """For each value of a setting the least loss over all others, in the order of the values."""
        least: dict[Any, float] = {}
        for one in reversed(self.finished):
            least[one.values[key]] = one.loss or 0.0
        return sorted(least.items(), key=lambda pair: (isinstance(pair[0], str), pair[0]))

    def flat(self, key: str) -> list[Any]:
        """The values of a setting with which the loss is less than FLAT above the least."""
        curve = self.curve(key)
        least = min((loss for _, loss in curve), default=0.0)
        return [value for value, loss in curve if loss <= least + FLAT * abs(least)]

    def conclusions(self) -> list[str]:
        """A sentence for each setting: which value was best, and how flat the curve is."""
        best = self.best
        if best is None:
            return ["No trial was finished."]
        made = []
        for key in self.axes:
            equal, every = self.flat(key), self.curve(key)
            others = f"{len(equal)} of {len(every)} values lose less than {FLAT:.0%}: {', '.join(map(shown, equal))}"
            made.append(f"{key}: {shown(best.values[key])} was best; {others}")
        return made


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
