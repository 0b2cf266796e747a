"""Cached hidden states: blocks below the lowest trainable one give a sequence the same output in every pass.

Each sequence is computed alone, cached or not. So its numbers depend neither on its neighbours in a batch nor on where
a run was interrupted and resumed. The key is its token ids, the value its hidden states (2 d bytes per token in a
16-bit dtype). Sequences are added until the memory limit is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

Compute = Callable[[Tensor, Tensor], Tensor]
"""Maps ids and positions (1, T) of a sequence to its hidden states (T, d)."""


class StateCache:
    """States by a key, up to `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._cached: dict[bytes, Tensor] = {}

    def of(self, key: bytes, compute: Callable[[], Tensor]) -> Tensor:
        states = self._cached.get(key)
        if states is None:
            states = compute()
            if states.nbytes <= self._room:
                self._room -= states.nbytes
                self._cached[key] = states
        return states


class Prefix:
    def __init__(self, compute: Compute, room: int) -> None:
        """`room` is the memory limit in bytes."""
        self._compute = compute
        self._cache = StateCache(room)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the hidden states (T, d) of packed sequences (1, T)."""
        parts = zip(inputs.split(list(lengths), 1), positions.split(list(lengths), 1), strict=True)
        return torch.cat([self._of(*part) for part in parts])

    def _of(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._cache.of(ids.cpu().numpy().tobytes(), partial(self._compute, ids, positions))
