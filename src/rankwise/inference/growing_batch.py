"""Answers that are written together although they begin and end at different times.

Keys and values of all rows lie in one cache, padded on the left, so that every row's next token is written at the same
place:

    row 1   . . a b c d | e          T positions, then one more with each step
    row 2   a b c d e f | g          a row that joins is read alone, in parts if it is long, then laid beside the others
    row 3   . . . . a b | c          a row that ends is taken out, and padding that no row needs any more is cut

What a prompt shares with an earlier one is not read again (prefixes.py).
A step computes one token for every row, each with its own adapter (adapters/by_row.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from rankwise.errors import EvaluationError
from rankwise.inference.kv_cache import RoomyLayer, preallocated_cache
from rankwise.inference.prefixes import Prefixes
from rankwise.inference.sampling import Chosen, Sampler, chosen

NO_NUMBER = (
    "an answer's highest logit is no number. The model's weights are damaged, or its number format overflows; try "
    "--dtype float32 to find out which."
)
ByRow = Callable[[Sequence[str | None]], AbstractContextManager[None]]


@dataclass(eq=False)
class Row:
    """An answer that is being written."""

    prompt: list[int]
    adapter: str | None
    sampler: Sampler
    ids: list[int] = field(default_factory=list)
    """Its tokens so far."""
    reused: int = 0
    """Tokens of the prompt that were not read again."""
    read: int = 0
    """Tokens of the prompt that have keys and values."""
    cache: Any = None
    """These, until the whole prompt is read."""
    sound: bool = True
    """False once the model gave no numbers for it."""


class GrowingBatch:
    """The rows that are being written. `by_row` lays the adapters of these names over the rows of a batch."""

    def __init__(self, module: nn.Module, by_row: ByRow, prefixes: Prefixes | None = None) -> None:
        self._module: Any = module
        self._by_row, self._prefixes = by_row, Prefixes(0) if prefixes is None else prefixes
        (self._name,) = preallocated_cache(module)
        self._cache: DynamicCache | None = None
        self._mask = torch.empty(0)
        self.rows: list[Row] = []

    @property
    def positions(self) -> int:
        """Of each row in the cache, padding included."""
        return 0 if self._cache is None else self._mask.shape[1]

    def join(self, row: Row) -> Chosen:
        """Read a prompt, and choose the first token of its answer. EvaluationError where the model gives no numbers."""
        first = self.read(row, len(row.prompt))
        assert first is not None, "all of it is read"
        return first

    @torch.inference_mode()
    def read(self, row: Row, most: int) -> Chosen | None:
        """The same in parts: None, until the last of so many more tokens of the prompt was read."""
        if row.cache is None:
            row.cache = self._with_beginning(row)
        begin, row.read = row.read, min(len(row.prompt), row.read + most)
        ids = torch.tensor([row.prompt[begin : row.read]], device=self._device)
        mask = ids.new_ones((1, row.read))
        logits = self._forward(ids, mask, row.cache, [row])
        if row.read < len(row.prompt):
            return None
        cache, row.cache = row.cache, None
        self.rows.append(row)
        (first,) = self._choose(logits, [row])
        if first is not None:
            self._prefixes.add(row.prompt, row.adapter, [(one.keys[0], one.values[0]) for one in _layers(cache)])
        self._lay_beside(cache, mask)
        if first is None:
            raise EvaluationError(NO_NUMBER)
        return first

    @torch.inference_mode()
    def step(self) -> list[Chosen | None]:
        """One more token for each row, in the order of `rows`; None where the model gives no numbers for a row, which
        must leave then."""
        ids = torch.tensor([row.ids[-1:] for row in self.rows], device=self._device)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        return self._choose(self._forward(ids, self._mask, self._cache, self.rows), self.rows)

    @torch.inference_mode()
    def leave(self, ended: Sequence[Row]) -> None:
        """Take rows out, in the middle of their answers or at their ends."""
        staying = [number for number, row in enumerate(self.rows) if row not in ended]
        if len(staying) == len(self.rows):
            return
        for number in set(range(len(self.rows))).difference(staying):
            self._store(number)
        self.rows = [self.rows[number] for number in staying]
        if not staying or self._cache is None:
            self._cache = None
            return
        self._mask = self._mask[staying]
        unused = int(self._mask.argmax(-1).min())  # the first position that any row needs
        self._mask = self._mask[:, unused:]
        numbers = torch.tensor(staying, device=self._device)
        for layer in _layers(self._cache):
            layer.keys, layer.values = (one[numbers, :, unused:].contiguous() for one in (layer.keys, layer.values))

    def _with_beginning(self, row: Row) -> DynamicCache:
        """Of a prompt that is read from here on, with what need not be read again."""
        cache = preallocated_cache(self._module)[self._name]
        row.reused, layers = self._prefixes.beginning_of(row.prompt, row.adapter)
        for layer, (keys, values) in zip(_layers(cache), layers, strict=False):
            layer.update(keys[None], values[None])
        row.read = row.reused
        return cache

    def _store(self, number: int) -> None:
        """What the row has read, for others that begin so: its last token was chosen and not read."""
        row = self.rows[number]
        if row.sound and self._cache is not None:
            ids = [*row.prompt, *row.ids[:-1]]
            own = [(one.keys[number], one.values[number]) for one in _layers(self._cache)]
            layers = [(keys[:, -len(ids) :], values[:, -len(ids) :]) for keys, values in own]
            self._prefixes.add(ids, row.adapter, layers)

    @property
    def _device(self) -> torch.device:
        return self._module.get_input_embeddings().weight.device

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any, rows: Sequence[Row]) -> Tensor:
        """The logits (B, V) of each row's last position."""
        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :]
        given = {self._name: cache, "attention_mask": mask, "position_ids": positions, "use_cache": True}
        with self._by_row([row.adapter for row in rows]):
            return self._module(input_ids=ids, logits_to_keep=1, **given).logits[:, -1].float()

    def _choose(self, logits: Tensor, rows: Sequence[Row]) -> list[Chosen | None]:
        """None for a row whose logits are no numbers; the others do not depend on it."""
        numbers = logits.amax(-1).isfinite()
        whole = bool(numbers.all())
        every = chosen(logits if whole else logits.where(numbers[:, None], 0), [row.sampler for row in rows])
        kept = [one if whole or good else None for one, good in zip(every, numbers.tolist(), strict=True)]
        for row, one in zip(rows, kept, strict=True):
            if one is not None:
                row.ids.append(one.token)
            row.sound = one is not None
        return kept

    def _lay_beside(self, cache: DynamicCache, mask: Tensor) -> None:
        """A row of its own cache beside the others; the shorter side is padded on the left."""
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_padded(one, width) for one in (self._mask, mask)])
        for layer, new in zip(_layers(self._cache), _layers(cache), strict=True):
            for name in ("keys", "values"):
                both = [_padded(getattr(one, name).transpose(-1, -2), width) for one in (layer, new)]
                setattr(layer, name, torch.cat(both).transpose(-1, -2).contiguous())


def can_grow(module: nn.Module) -> bool:
    """Whether the model keeps all keys and values of all layers, and nothing else."""
    (cache,) = preallocated_cache(module).values() or [None]
    return cache is not None and all(type(layer) is RoomyLayer for layer in cache.layers)


def _layers(cache: DynamicCache) -> list[Any]:
    return list(cache.layers)


def _padded(values: Tensor, width: int) -> Tensor:
    """The last dimension, with zeros on the left."""
    return F.pad(values, (width - values.shape[-1], 0))
