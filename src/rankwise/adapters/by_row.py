"""A batch whose rows have different adapters over one base, computed together.

    y = x W^T + m(x A^T) B^T        A (R, I) and B (O, R) have the factors of all adapters, one behind the other

where m leaves of each row what its own adapter's A gave, and zeros. The product with W, which is nearly all of the
work, is one for all rows, and so are the two small ones. What is no pair of factors over a linear layer (DoRA,
embeddings) is computed for the rows of one adapter after the other. A row's result is that of its adapter alone, but
for rounding; where all rows have the same adapter, the layers compute as they do with that one active.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rankwise.adapters.experts import ExpertsWrapper
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.token_rows import TokenRows
from rankwise.adapters.wrapper import ROUNDED, AdapterWrapper
from rankwise.kernels.linear import LinearSpec, linear_spec_of, rounded_once


@dataclass(frozen=True)
class Stack:
    """The factors of those adapters of a layer that are pairs: A (R, I) and B (O, R), the place of each adapter from 1,
    and `owner` (R,), the place of the adapter of each row of A."""

    linear: LinearSpec
    A: Tensor
    B: Tensor
    owner: Tensor
    places: Mapping[str, int]

    def change(self, x: Tensor, which: Tensor) -> Tensor:
        """x (B, T, I) to (B, T, O); `which` (B,) are places, 0 for the base."""
        down = x @ self.A.T
        return down.masked_fill(which[:, None, None] != self.owner, 0) @ self.B.T


class AdaptersByRow:
    """The factors are copied, so `update` must be called after the set has changed."""

    def __init__(self, adapters: AdapterSet) -> None:
        self._adapters = adapters
        self._layers: list[AdapterWrapper] = []
        self._stacks: list[Stack | None] = []
        self._device = next(adapters.model.parameters()).device
        self.update()
        self.mixes = not self.separates()
        """Whether rows of several adapters can be in one batch, decided once."""

    def separates(self) -> bool:
        """Whether the set has what cannot be mixed. Experts get the tokens of all rows in one list."""
        return any(isinstance(one, TokenRows | ExpertsWrapper) for one in self._adapters.model.modules())

    def update(self) -> None:
        """Copy the factors of those layers whose adapters are others than before. An adapter of the same name counts as
        the same."""
        before = dict(zip(map(id, self._layers), zip(self._layers, self._stacks, strict=True), strict=True))
        self._layers = list(self._adapters.layers.values())
        self._heads = list(self._adapters.heads.values())
        self._names = set(self._adapters.names)
        self._stacks = []
        for layer in self._layers:
            _, stack = before.pop(id(layer), (None, None))
            pairs = [name for name in layer.adapters if layer.adapter(name).pair() is not None]
            self._stacks.append(stack if stack is not None and list(stack.places) == pairs else _stack_of(layer))

    @contextmanager
    def of(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of a batch is computed with the adapter `names[i]`, or by the base where that is None."""
        alone = len(set(names)) == 1
        assert alone or self.mixes, "the caller asks first"
        assert self._names.issuperset(name for name in names if name is not None), "an adapter is gone before its rows"
        before = [layer.active for layer in self._layers], [head.active for head in self._heads]
        numbers = {name: torch.tensor(rows, device=self._device) for name, rows in _numbers(names).items()}
        places: dict[tuple[int, ...], Tensor] = {}  # of most layers they are the same
        try:
            for layer, stack in zip(self._layers, self._stacks, strict=True):
                own = {name: rows for name, rows in numbers.items() if name in layer.adapters}
                mixes = bool(own) and not alone
                mixed = partial(_mixed, layer, stack, self._which(stack, names, places), own) if mixes else None
                layer.lay(tuple(own) if alone else (), mixed)
            for head in self._heads:
                own = {name: rows for name, rows in numbers.items() if name in head.copies}
                head.active, head.mixed = (next(iter(own), None), None) if alone else (None, own or None)
            yield
        finally:
            for layer, names_before in zip(self._layers, before[0], strict=True):
                layer.lay(names_before, None)
            for head, name_before in zip(self._heads, before[1], strict=True):
                head.active, head.mixed = name_before, None

    def _which(
        self, stack: Stack | None, names: Sequence[str | None], places: dict[tuple[int, ...], Tensor]
    ) -> Tensor | None:
        if stack is None:
            return None
        listed = tuple(stack.places.get(name or "", 0) for name in names)
        if listed not in places:
            places[listed] = torch.tensor(listed, device=self._device)
        return places[listed]


def _mixed(
    layer: AdapterWrapper, stack: Stack | None, which: Tensor | None, rows: Mapping[str, Tensor], x: Tensor
) -> Tensor:
    """In 16 bits the change is there before the sum is rounded, unless the layer has others than pairs."""
    others = {name: one for name, one in rows.items() if stack is None or name not in stack.places}
    change = stack.change(x, which) if stack is not None and which is not None else None
    host = None if stack is None else stack.linear
    if change is not None and host is not None and not others and x.dtype in ROUNDED and host.weight.dtype == x.dtype:
        flat = x.flatten(0, -2)
        return rounded_once(change.flatten(0, -2), flat, host.weight, host.bias).view_as(change)
    y = layer.base_layer(x)
    y = y if change is None else y + change
    for name, one in others.items():
        y[one] = layer.adapter(name).added_to(y[one], x[one])
    return y


def _stack_of(layer: AdapterWrapper) -> Stack | None:
    """None where no adapter of the layer is a pair of factors over a linear layer."""
    host = linear_spec_of(layer.base_layer)
    pairs = {name: layer.adapter(name).pair() for name in layer.adapters}
    there = {name: pair for name, pair in pairs.items() if pair is not None}
    if host is None or not there:
        return None
    dtype = host.weight.dtype if host.weight.is_floating_point() else torch.float32
    A = torch.cat([A.detach().to(dtype) for A, _ in there.values()])
    B = torch.cat([B.detach().to(dtype) for _, B in there.values()], 1)
    places = {name: place for place, name in enumerate(there, start=1)}
    owner = torch.tensor([places[name] for name, (A_of, _) in there.items() for _ in A_of], device=A.device)
    return Stack(host, A, B, owner, places)


def _numbers(names: Sequence[str | None]) -> dict[str, list[int]]:
    """The numbers of the rows of each adapter."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if name is not None:
            numbers.setdefault(name, []).append(number)
    return numbers
