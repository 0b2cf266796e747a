"""How many triplets may live, as a pure function of the step, and what a budget that was asked for comes to.

    b(t) = first                                                  t <= warm-up
           last + (first - last) (1 - (t - ti) / (T - tf - ti))^3    until the final phase
           last                                                   from t = T - tf on

as in the authors' code; the paper's formula subtracts tf in the numerator too and does not meet its own ends. t counts
the optimizer steps done before this one. A budget is counted in triplets, or in the parameters of the written adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.errors import SpecError
from rankwise.spec.adapters import AdaLoraSpec

BYTES_OF_NAMES = 190
"""At most what a safetensors header says of one pair of factors, its path and the four places in the file apart."""
BYTES_OF_FILE = 64
"""Of the header, apart from the pairs."""
BYTES_PER_PARAMETER = 4


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
    def of(cls, spec: AdaLoraSpec, first: int, last: int, steps: int) -> Schedule:
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


@dataclass(frozen=True)
class Budget:
    """`last` of what is counted may be left at the end: triplets, or parameters (`by_cost`)."""

    last: int
    by_cost: bool
    mean_rank: float
    """What it comes to if every part gets the same."""
    entries: tuple[int, ...]
    """What each layer that keeps any rank costs besides, in parameters: its names in the file, where bytes count."""


def budget_of(spec: AdaLoraSpec, costs: Sequence[int], paths: Sequence[str]) -> Budget:
    """`costs` are the parameters of one triplet in each part, `paths` those of the layers."""
    kind, amount = spec.asked
    parts, dearest = len(costs), sum(costs)
    places = 4 * len(str(int(amount)))
    names = [BYTES_OF_NAMES + places + 2 * len(path) if kind == "bytes" else 0 for path in paths]
    entries = [-(-size // BYTES_PER_PARAMETER) for size in names]
    if kind in ("rank", "triplets"):
        triplets = round(amount * parts) if kind == "rank" else round(amount)
        by_cost = spec.budget_unit == "parameters"
        last = round(triplets * dearest / parts) if by_cost else triplets
        mean_rank = triplets / parts
    else:
        last = int(amount) if kind == "parameters" else int((amount - BYTES_OF_FILE) // BYTES_PER_PARAMETER)
        by_cost, mean_rank = True, max(0, last - sum(entries)) / dearest
    least = min(costs) + min(entries) if by_cost else 1
    if last < least:
        raise SpecError([_too_small(spec, parts, least if by_cost else None)])
    return Budget(last, by_cost, mean_rank, tuple(entries))


def _too_small(spec: AdaLoraSpec, parts: int, least: int | None) -> str:
    size = least if least is None or spec.asked[0] != "bytes" else least * BYTES_PER_PARAMETER + BYTES_OF_FILE
    unit = "bytes" if spec.asked[0] == "bytes" else "parameters"
    return f'adapter.budget "{spec.budget}" is less than one triplet on these {parts} layers' + (
        "." if size is None else f"; the smallest there is has {size:,} {unit}."
    )
