"""What the fast form asks of a family of decoders. The loop over the blocks is not theirs but fast.py's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from rankwise.data.batches import Batch


class Decoder(Protocol):
    """`model` is what lies below the head, `layer` one of its blocks; both are transformers' own, adapted or not."""

    @property
    def blocks(self) -> Collection[str]:
        """Classes of the blocks that are known."""
        ...

    def layers(self, model: Any) -> Sequence[nn.Module]: ...

    def suits(self, model: Any, longest: int) -> bool:
        """Whether nothing in it is switched on that is not computed here, for documents of at most so many tokens."""
        ...

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """(T, d), what goes into the first block, and what all blocks share (angles, or nothing)."""
        ...

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        """(T, d) to (T, H * D), before the output projection. The one place where tokens see others."""
        ...

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        """What went into the block and what its attention saw, at any N places, to what comes out of it there."""
        ...

    def end(self, model: Any, x: Tensor) -> Tensor:
        """What comes out of the last block to what the head gets."""
        ...
