"""The interface of a decoder family for the fused backend; the loop over the blocks is in fused.py."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from rankwise.data.batches import Batch


class Decoder(Protocol):
    """`model` is the part below the head, `layer` one of its blocks; both are transformers' modules, with or without
    adapters."""

    @property
    def blocks(self) -> Collection[str]:
        """Names of the supported block classes."""
        ...

    def layers(self, model: Any) -> Sequence[nn.Module]: ...

    def suits(self, model: Any, longest: int) -> bool:
        """Tell whether every feature that the model uses is supported, for sequences of at most so many tokens."""
        ...

    def start(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Return the input of the first block (T, d) and what all blocks share (rotary angles, or None)."""
        ...

    def attended(self, layer: Any, x: Tensor, context: Any, lengths: Sequence[int]) -> Tensor:
        """Map (T, d) to attention outputs (T, H * D), before the output projection. Only here do tokens see other
        tokens."""
        ...

    def finished(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        """Map a block's input and attention output at any N positions to the block's output at these positions."""
        ...

    def end(self, model: Any, x: Tensor) -> Tensor:
        """Map the output of the last block to the input of the head."""
        ...
