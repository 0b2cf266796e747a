"""Smaller batches when memory runs out: a step is begun again with half as many tokens at once.

What a step learns from is a sum over all its rows, so how they are cut into batches changes no result (without
dropout), and the rows of a step stay the same. A sequence is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rankwise.data.batches import Batch, Batches


class StepBatches(Protocol):
    """Which batches make which step."""

    def at(self, step: int) -> list[Batch]: ...

    def epoch(self, step: int) -> float:
        """How often each row was seen after so many steps."""
        ...


def halved(batches: StepBatches, step: int) -> tuple[Batches, str] | None:
    """Batches whose largest one of this step is smaller, and a sentence about them; None where there are none."""
    if not isinstance(batches, Batches):
        return None
    before, tokens = _largest(batches.at(step)), batches.max_batch_tokens
    while tokens > 1:
        tokens //= 2
        smaller = replace(batches, max_batch_tokens=tokens)
        if (after := _largest(smaller.at(step))) < before:
            return smaller, (
                f"out of memory with micro-batches of {before:,} tokens; continuing with "
                f"training.max_batch_tokens={tokens}, which makes {after:,} in this step. Each step still has the "
                "same rows"
            )
    return None


def _largest(batches: Sequence[Batch]) -> int:
    return max(batch.size for batch in batches)
