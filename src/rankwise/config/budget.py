"""What a budget that was asked for comes to, on layers of these sizes: triplets, or parameters of the written adapter.

The file's safetensors header counts where bytes were asked for, at its largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.config.adapters import AdaLoraConfig
from rankwise.errors import ConfigError

BYTES_OF_NAMES = 226
"""At most what a safetensors header says of one pair of factors, its path apart, in a file of less than a gigabyte."""
BYTES_OF_FILE = 64
"""Of the header, apart from the pairs."""
BYTES_PER_PARAMETER = 4


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


def budget_of(spec: AdaLoraConfig, costs: Sequence[int], layers: Sequence[int], paths: Sequence[str]) -> Budget:
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
        raise ConfigError(
            [f'adapter.budget "{spec.budget}" is less than one triplet on these {parts} layers{smallest}.']
        )
    return budget


def initial_rank(budget: float, widths: tuple[int, int], initial: float) -> int:
    """At the start `initial` times the mean rank that is left at the end, and never more than fits."""
    return max(1, min(math.ceil(budget * initial - 1e-9), *widths))
