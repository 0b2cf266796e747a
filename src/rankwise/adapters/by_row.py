"""A batch whose rows have different adapters over one base, computed together.

    y = x W^T,   then for each adapter k and the numbers r of its rows:   y[r] += x[r] A_k^T B_k^T

The product with W, which is nearly all of the work, is one for all rows; a row's result is that of its adapter alone,
but for rounding. Where all rows have the same adapter, the layers compute as they do with that one active.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from rankwise.adapters.experts import ExpertsWrapper
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.token_rows import TokenRows


class AdaptersByRow:
    """The layers are looked up once, so the set must stay as it is."""

    def __init__(self, adapters: AdapterSet) -> None:
        self._layers = list(adapters.layers.values())
        self._heads = list(adapters.heads.values())
        self._device = next(adapters.model.parameters()).device
        self._names = adapters.names
        self.mixes = not any(isinstance(one, TokenRows | ExpertsWrapper) for one in adapters.model.modules())
        """Whether rows of several adapters can be in one batch. Experts get the tokens of all rows in one list."""

    @contextmanager
    def of(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of a batch is computed with the adapter `names[i]`, or by the base where that is None."""
        alone = len(set(names)) == 1
        assert alone or self.mixes, "the caller asks first"
        numbers = {name: torch.tensor(rows, device=self._device) for name, rows in _numbers(names).items()}
        active = [layer.active for layer in self._layers], [head.active for head in self._heads]
        try:
            for layer in self._layers:
                own = {name: rows for name, rows in numbers.items() if name in layer.adapters}
                layer.active, layer.mixed = (tuple(own), None) if alone else ((), own or None)
            for head in self._heads:
                own = {name: rows for name, rows in numbers.items() if name in head.copies}
                head.active, head.mixed = (next(iter(own), None), None) if alone else (None, own or None)
            yield
        finally:
            for layer, names_before in zip(self._layers, active[0], strict=True):
                layer.active, layer.mixed = names_before, None
            for head, name_before in zip(self._heads, active[1], strict=True):
                head.active, head.mixed = name_before, None


def _numbers(names: Sequence[str | None]) -> dict[str, list[int]]:
    """The numbers of the rows of each adapter."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if name is not None:
            numbers.setdefault(name, []).append(number)
    return numbers
