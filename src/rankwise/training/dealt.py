"""Rows and other items dealt over the processes that train together, by what they cost (data/dealing.py).

    rows of a step           each process learns from its share, and what is summed is that of all
    items to be measured     each process computes its share, and all have every result in the order of the items

Results are sent as JSON, which gives numbers back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rankwise.data.batches import Batch, Batches
from rankwise.data.dealing import deal, share_of, undealt
from rankwise.data.pair_batches import chosen_targets, with_chosen_tokens
from rankwise.text.tokenize import Tokens
from rankwise.training.world import World

_Item = TypeVar("_Item")


def computed_by_all(
    world: World, items: Sequence[_Item], costs: Sequence[int], compute: Callable[[list[_Item]], Sequence[Any]]
) -> list[Any]:
    """What `compute` makes of the items, one result for each. A process without a share computes nothing."""
    if not world.is_several:
        return undealt(items, costs, compute)
    shares = deal(costs, world.size)
    own = [items[place] for place in shares[world.rank]]
    results = dict[int, Any]()
    for share, made in zip(shares, world.exchange(list(compute(own)) if own else []), strict=True):
        results |= zip(share, made, strict=True)
    return [results[place] for place in range(len(items))]


def shared_out(batches: Batches, world: World, first: int = 0) -> Batches:
    """Each process's share of every step; `first` are tokens that the first process computes beside its rows."""
    if not world.is_several:
        return batches
    return replace(batches, share=lambda rows: share_of(rows, world.rank, world.size, first))


def divided_over(
    world: World, rows: Sequence[Tokens], layout: Callable[[Sequence[Tokens]], list[Batch]]
) -> list[Batch]:
    """This process's share of the rows as batches, whose losses are summed over all processes."""
    own = share_of(rows, world.rank, world.size)
    batches = layout(own) if own else []
    if not world.is_several:
        return batches
    count, chosen = world.sums([sum(batch.count for batch in batches), chosen_targets(batches)])
    return with_chosen_tokens(batches, chosen / count) if chosen else batches
