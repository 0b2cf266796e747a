"""Keys and values of what was read and written lately, for prompts that begin in the same way.

    a prompt was read, or an answer ended     its tokens stay here, with their keys and values
    a prompt is to be read                    the longest beginning that it shares with one of them is not read again

So a conversation is read from its last turn on, and a system message that many requests share is read once. Each
adapter has its own keys and values. Those that were used least recently go where there are more bytes than `most`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

SHORTEST = 16
"""Tokens that a shared beginning must have; to read fewer takes hardly longer than to copy them."""
MOST, MOST_READ = 512_000_000, 256
"""Bytes, and prompts and answers, that stay."""

KeysValues = Sequence[tuple[Tensor, Tensor]]
"""The keys and values of each layer, both (heads, T, head size)."""


@dataclass(eq=False)
class Read:
    """Tokens, and their keys and values with an adapter."""

    adapter: str | None
    ids: tuple[int, ...]
    layers: KeysValues

    @cached_property
    def bytes(self) -> int:
        return sum(one.numel() * one.element_size() for pair in self.layers for one in pair)


class Prefixes:
    """Not for several threads."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._read: list[Read] = []
        """The one that was used last stands last."""

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self._read)

    def beginning_of(self, prompt: Sequence[int], adapter: str | None) -> tuple[int, KeysValues]:
        """How many tokens of the prompt need not be read, and their keys and values. At least one token is left."""
        best, length, ids = None, SHORTEST - 1, tuple(prompt[:-1])
        for one in self._read:
            if one.adapter == adapter and (same := common(one.ids, ids)) > length:
                best, length = one, same
        if best is None:
            return 0, ()
        self._read.remove(best)
        self._read.append(best)
        return length, [(keys[:, :length], values[:, :length]) for keys, values in best.layers]

    def add(self, ids: Sequence[int], adapter: str | None, layers: KeysValues) -> None:
        """In place of those that are a beginning of it. The tensors are copied."""
        new = Read(adapter, tuple(ids), layers)
        if len(new.ids) < SHORTEST or new.bytes > self._most:
            return
        shared = [(one, common(one.ids, new.ids)) for one in self._read if one.adapter == adapter]
        if any(same == len(new.ids) for _, same in shared):
            return
        for one, same in shared:
            if same == len(one.ids):
                self._read.remove(one)
        self._read.append(replace(new, layers=[(keys.clone(), values.clone()) for keys, values in layers]))
        while self.bytes > self._most or len(self._read) > MOST_READ:
            del self._read[0]

    def forget(self, adapter: str | None) -> None:
        """Drop everything that was read with an adapter that is now discarded."""
        self._read = [one for one in self._read if one.adapter != adapter]


def common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """The number of tokens with which both begin, by halves, since slices are compared fast."""
    same, end = 0, min(len(first), len(second))
    while same < end:
        middle = (same + end + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
