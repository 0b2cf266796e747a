"""A base that is split over the processes is gathered in each pass, so all of them make as many passes.

    passes of a step = the most micro-batches that any process has

A process with fewer adds batches of one row in which nothing is predicted: their loss and their gradients are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rankwise.data.batches import Batch
from rankwise.text.tokenize import Tokens
from rankwise.training.world import World

NOTHING_PREDICTED = Tokens((0, 0), (False, False))


class Layout(Protocol):
    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]: ...


def filled_up(batches: Sequence[Batch], world: World, layout: Layout) -> list[Batch]:
    """The batches of this process and as many idle ones as the others have more."""
    passes = max(round(count) for (count,) in world.gather([len(batches)]))
    (idle,) = layout.layout([NOTHING_PREDICTED], len(NOTHING_PREDICTED.ids))
    return [*batches, *[idle] * (passes - len(batches))]
