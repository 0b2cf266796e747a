"""Mistakes that a training by several processes could make, and the laws over every kind of training must notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from kit.worlds import patched
from rankwise.rows.encoded.batches import Batch, Batches
from rankwise.training import step, validation_prompts
from rankwise.training.losses import PairTally
from rankwise.training.world import World

Mistake = Callable[[], AbstractContextManager[None]]


def own_prompts(real: Any) -> Any:
    """The likelihood of orpo is divided by the tokens of this process's pairs."""
    return lambda batches, mean: batches


def local_positions(real: Any) -> Any:
    """An image is varied by its place among the rows of this process."""

    def at(batches: Batches, number: int) -> list[Batch]:
        positions = range(number * batches.batch_size, (number + 1) * batches.batch_size)
        rows = [batches.rows[batches._row(position)] for position in positions]  # pyright: ignore[reportPrivateUsage]
        rows = rows if batches.share is None else batches.share(rows)
        vary = batches.vary
        varied = rows if vary is None else [vary(row, position) for row, position in zip(rows, positions, strict=False)]
        return batches.arrange(varied, batches.max_batch_tokens) if varied else []

    return at


def anchored_by_all(real: Any) -> Any:
    """Each process adds the anchor's gradient."""

    def learn(*given: Any, has_anchor: bool) -> Any:
        return real(*given, has_anchor=True)

    return learn


def nothing_summed(real: Any) -> Any:
    return lambda *given: None


def in_dealt_order(real: Any) -> Any:
    """The results of the first process stand before those of the second."""

    def computed(world: World, items: Sequence[Any], costs: Sequence[int], compute: Any) -> list[Any]:
        own = items[world.rank :: world.size]
        return [one for part in world.exchange(list(compute(list(own))) if own else []) for one in part]

    return computed


MISTAKES: dict[str, tuple[str, Mistake]] = {
    "own prompts": ("orpo", partial(patched, step, "with_chosen_tokens", own_prompts)),
    "own margins": ("dpo", partial(patched, PairTally, "sum_up", nothing_summed)),
    "local positions": ("images", partial(patched, Batches, "at", local_positions)),
    "anchored by all": ("anchor", partial(patched, step, "_learn", anchored_by_all)),
    "apart by the first": ("anchor, adalora, fused", partial(patched, World, "sum_tensors", nothing_summed)),
    "answers in dealt order": ("answers", partial(patched, validation_prompts, "computed_by_all", in_dealt_order)),
}
"""Each with a training that it spoils."""
