"""Smaller micro-batches when memory runs out: a step is begun again with half as many tokens at once.

What a step learns from is a sum over all its rows, so how they are portioned changes no result (without dropout), and
the rows of a step stay the same. A document is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rankwise.data.batches import Batch, Batches
from rankwise.runs.records import Callback, WarningMessage


class Portions(Protocol):
    def at(self, step: int) -> Sequence[Batch]: ...

    def epoch(self, step: int) -> float: ...

    def halve(self, step: int) -> bool:
        """Take fewer tokens at once from this step on; whether its largest micro-batch is smaller now."""
        ...


class Halving:
    def __init__(self, batches: Batches, callback: Callback) -> None:
        self.batches = batches
        self.callback = callback

    def at(self, step: int) -> Sequence[Batch]:
        return self.batches.at(step)

    def epoch(self, step: int) -> float:
        return self.batches.epoch(step)

    def halve(self, step: int) -> bool:
        before, tokens = _largest(self.at(step)), self.batches.max_batch_tokens
        while tokens > 1:
            tokens //= 2
            smaller = replace(self.batches, max_batch_tokens=tokens)
            if (after := _largest(smaller.at(step))) < before:
                self.batches = smaller
                self.callback(WarningMessage(
                    f"out of memory with {before:,} tokens at once; going on with training.max_batch_tokens="
                    f"{tokens}, {after:,} at once in this step. A step still has the same rows"
                ))  # fmt: skip
                return True
        return False


def _largest(batches: Sequence[Batch]) -> int:
    """With padding."""
    return max(batch.inputs.numel() for batch in batches)
