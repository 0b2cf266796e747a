"""Rows dealt over several processes by what they cost, so that all of them are ready at about the same time.

    the costliest row first, each to the share that costs the least so far

No share then costs more than the mean and one row together. It is a function of the costs alone, so that every process
deals alike, and the rows of all shares together are those that were given. A share may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.rows.text.tokenize import Tokens

Dealing = Callable[[Sequence[Any], Sequence[int], Callable[[list[Any]], Sequence[Any]]], list[Any]]
"""Items, what each costs, and what computes one result for each of some items, to the results of all in their order;
anything that JSON can hold."""


def deal(costs: Sequence[int], shares: int, first: int = 0) -> list[list[int]]:
    """The numbers of the rows in each share, ascending. Equal rows and shares go by their numbers. `first` is what the
    first share costs beside its rows."""
    dealt: list[list[int]] = [[] for _ in range(shares)]
    loads = [(0 if number else first, number) for number in range(shares)]
    heapify(loads)
    for row in sorted(range(len(costs)), key=lambda row: (-costs[row], row)):
        load, number = heappop(loads)
        dealt[number].append(row)
        heappush(loads, (load + costs[row], number))
    return [sorted(rows) for rows in dealt]


def share_of(rows: Sequence[Tokens], number: int, shares: int, first: int = 0) -> list[Tokens]:
    """The rows of one share; a row costs as much as it has tokens."""
    return [rows[row] for row in deal([len(row.ids) for row in rows], shares, first)[number]]


def undealt(items: Sequence[Any], costs: Sequence[int], compute: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    """By one process."""
    return list(compute(list(items))) if len(items) else []
