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

BYTES_OF_NAMES = 226
"""At most what a safetensors header says of one pair of factors, its path apart, in a file of less than a gigabyte."""
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
    in_bytes: bool

    def told(self, amount: int) -> int:
        """An amount of what is counted, in the unit that it is told in."""
        return amount * BYTES_PER_PARAMETER + BYTES_OF_FILE if self.in_bytes else amount

    @property
    def unit(self) -> str:
        return "bytes" if self.in_bytes else "parameters" if self.by_cost else "triplets"


def budget_of(spec: AdaLoraSpec, costs: Sequence[int], layers: Sequence[int], paths: Sequence[str]) -> Budget:
    """`costs` are the parameters of one triplet of each part, `layers` in which of the layers at `paths` it is."""
    kind, amount = spec.asked
    parts, dearest = len(costs), sum(costs)
    names = [BYTES_OF_NAMES + 2 * len(path) if kind == "bytes" else 0 for path in paths]
    entries = [-(-size // BYTES_PER_PARAMETER) for size in names]
    if kind in ("rank", "triplets"):
        triplets = round(amount * parts) if kind == "rank" else round(amount)
        by_cost = spec.budget_unit == "parameters"
        last = round(triplets * dearest / parts) if by_cost else triplets
        mean_rank = triplets / parts
    else:
        last = int(amount) if kind == "parameters" else int((amount - BYTES_OF_FILE) // BYTES_PER_PARAMETER)
        by_cost, mean_rank = True, max(0, last - sum(entries)) / dearest
    budget = Budget(last, by_cost, mean_rank, tuple(entries), in_bytes=kind == "bytes")
    least = min(cost + entries[layer] for cost, layer in zip(costs, layers, strict=True)) if by_cost else 1
    if last < least:
        smallest = f"; the smallest there is has {budget.told(least):,} {budget.unit}" if by_cost else ""
        raise SpecError([f'adapter.budget "{spec.budget}" is less than one triplet on these {parts} layers{smallest}.'])
    return budget
