"""The budget of AdaLoRA for given layers, as a number of triplets or of parameters.

A budget in bytes includes the largest possible header of the adapter's safetensors file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rankwise.errors import ConfigError

BYTES_OF_NAMES = 226
"""Largest size of the header entry of one pair of factors, without its path, in a file of less than a gigabyte."""
BYTES_OF_FILE = 64
"""Size of the header without the entries of the pairs."""
BYTES_PER_PARAMETER = 4
BudgetKind = Literal["rank", "triplets", "parameters", "bytes"]
UNITS: dict[str, BudgetKind] = {
    "": "rank", "rank": "rank", "triplet": "triplets", "triplets": "triplets", "parameter": "parameters",
    "parameters": "parameters", "params": "parameters", "b": "bytes",
}  # fmt: skip
LARGEST_BUDGET = 1e13
TIMES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


class BudgetSettings(Protocol):
    @property
    def budget(self) -> str: ...
    @property
    def budget_unit(self) -> Literal["triplets", "parameters"]: ...


@dataclass(frozen=True)
class Budget:
    """`last` is how much may remain at the end: a number of parameters if `by_cost`, of triplets otherwise."""

    last: int
    by_cost: bool
    mean_rank: float
    """Rank of every layer if all layers get the same share."""
    entries: tuple[int, ...]
    """Fixed cost of each layer that keeps any rank, in parameters: its names in the file, for a budget in bytes."""
    in_bytes: bool

    def in_unit(self, amount: int) -> int:
        """Convert a number of triplets or parameters to the unit of messages."""
        return amount * BYTES_PER_PARAMETER + BYTES_OF_FILE if self.in_bytes else amount

    @property
    def unit(self) -> str:
        return "bytes" if self.in_bytes else "parameters" if self.by_cost else "triplets"


def parse_budget(text: str) -> tuple[BudgetKind, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)\s*(b|rank|triplets?|parameters?|params|)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise ValueError("a budget is a mean rank (8), 1680 triplets, 600k parameters, or a size (2MB)")
    kind, amount = UNITS[found[3]], float(found[1]) * TIMES[found[2]]
    if kind == "rank" and not 0 < amount <= 4096:
        raise ValueError("a mean rank is at most 4096; write a size as 2MB, or parameters as 600k parameters")
    if amount > LARGEST_BUDGET:
        raise ValueError("a budget is at most 1e13")
    return kind, amount


def budget_of(spec: BudgetSettings, costs: Sequence[int], layers: Sequence[int], paths: Sequence[str]) -> Budget:
    """Resolve the budget. `costs` are the parameters of a triplet of each part; `layers` index its layer in `paths`."""
    kind, amount = parse_budget(spec.budget)
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
        smallest = f"; the smallest triplet has {budget.in_unit(least):,} {budget.unit}" if by_cost else ""
        raise ConfigError(
            [f'adapter.budget "{spec.budget}" is less than one triplet for these {parts} layers{smallest}.']
        )
    return budget


def initial_rank(budget: float, widths: tuple[int, int], initial: float) -> int:
    """Rank of a layer at the first step: `initial` times the mean rank at the end, and at most its smaller width."""
    return max(1, min(math.ceil(budget * initial - 1e-9), *widths))
