"""What lies below the lowest layer that learns is the same for a document in every pass, so it is computed once.

Each document is computed alone, whether it is kept or not, so that its numbers depend neither on what it lies beside
nor on when a run was stopped and went on. It is known by its ids. What is kept is its hidden states, 2 d bytes a token
in a 16-bit format, as long as there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Compute = Callable[[Tensor, Tensor], Tensor]
"""Ids and positions (1, T) of a document to its hidden states (T, d)."""


class Prefix:
    def __init__(self, compute: Compute, room: int) -> None:
        """`room` in bytes."""
        self._compute = compute
        self._room = room
        self._kept: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def __call__(self, inputs: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Of documents one behind the other, (1, T), to (T, d)."""
        parts = zip(inputs.split(list(lengths), 1), positions.split(list(lengths), 1), strict=True)
        return torch.cat([self._of(*part) for part in parts])

    def _of(self, ids: Tensor, positions: Tensor) -> Tensor:
        key = ids.cpu().numpy().tobytes()
        found = self._kept.get(key)
        if found is None:
            found = self._compute(ids, positions)
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._kept[key] = found
        return found
