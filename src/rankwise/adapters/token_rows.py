"""Rows of single tokens, trained in an embedding table and in the output head that reads the same tokens.

    table   y = E[x], and for a trained token its own row instead
    head    y = W h,  and in the columns of trained tokens  R h  instead

All other rows stay the base's and get no gradient. The rows are float32 and start as the base's. Where table and head
share one weight, they share the trained rows too. PEFT calls these `trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.adapters.heads import HeadWrapper
from rankwise.errors import TargetError


class TrainedRows(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


class TokenRows(HeadWrapper):
    """A table or a head, with the rows of its tokens by the name of the adapter. `shared` has the rows of a head that
    shares its weight with a table."""

    def __init__(self, base_layer: nn.Module, ids: Sequence[int], shared: TokenRows | None = None) -> None:
        self.__dict__["_shared"] = shared  # outside of the modules, so that rows are counted once
        super().__init__(base_layer)
        weight: Any = base_layer.weight
        self.ids = tuple(ids)
        place = torch.full((len(weight),), -1)
        place[list(ids)] = torch.arange(len(ids))
        self.register_buffer("_place", place.to(weight.device), persistent=False)
        self.register_buffer("_ids", torch.tensor(ids, device=weight.device), persistent=False)

    @property
    def active(self) -> str | None:
        return self._active if self._shared is None else self._shared.active

    @active.setter
    def active(self, name: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._active = name

    @property
    def is_empty(self) -> bool:
        return not (self.copies if self._shared is None else self._shared.copies)

    def add(self, name: str) -> None:
        if self._shared is None:
            weight: Any = self.base_layer.weight
            self.copies[name] = TrainedRows(weight.detach()[self._ids].float())

    def of(self, name: str) -> nn.Parameter:
        """(n, d) rows of one adapter, in the order of the ids."""
        rows = self.copies[name]
        assert isinstance(rows, TrainedRows), "add makes no others"
        return rows.weight

    @property
    def rows(self) -> nn.Parameter | None:
        """The active rows."""
        owner = self if self._shared is None else self._shared
        return None if owner.active is None else owner.of(owner.active)

    def forward(self, x: Tensor) -> Tensor:
        y, rows = self.base_layer(x), self.rows
        if rows is None:
            return y
        return self._looked_up(x, y, rows) if isinstance(self.base_layer, nn.Embedding) else self._scored(x, y, rows)

    def _looked_up(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """A table of Gemma multiplies what it looks up."""
        place, scale = self._place[x], getattr(self.base_layer, "embed_scale", None)
        own = F.embedding(place.clamp_min(0), rows).to(y.dtype)
        own = own if scale is None else own * torch.as_tensor(scale).to(y.dtype)
        return torch.where((place >= 0)[..., None], own, y)

    def _scored(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        bias: Any = getattr(self.base_layer, "bias", None)
        own = F.linear(x, rows.to(x.dtype), None if bias is None else bias[self._ids])
        return y.index_copy(-1, self._ids, own)

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Inside, the active rows are `factor` of the way from the base's to the trained ones."""
        if self._shared is not None or (rows := self.rows) is None:
            yield
            return
        trained, weight = rows.data, self.base_layer.weight
        assert isinstance(weight, Tensor), "a table or a head"
        try:
            rows.data = torch.lerp(weight.detach()[self._ids].float(), trained, factor)
            yield
        finally:
            rows.data = trained

    @torch.no_grad()
    def write(self, name: str) -> None:
        """Put the trained rows into the base's own weight."""
        if self._shared is None:
            weight = self.base_layer.weight
            assert isinstance(weight, Tensor), "a table or a head"
            weight[self._ids] = self.of(name).to(weight.dtype)


def lay_token_rows(model: nn.Module, ids: Mapping[str, Sequence[int]], name: str) -> None:
    """Train the rows of these tokens in the modules at these paths, and in a head that shares the weight of one."""
    table_of: dict[int, TokenRows] = {}
    for path, numbers in ids.items():
        wrapper = _wrapped(model, path, numbers)
        table_of[id(wrapper.base_layer.weight)] = wrapper
        wrapper.add(name)
        wrapper.active = name
    head = _path_of(model, "get_output_embeddings")
    if head is None or isinstance(module := model.get_submodule(head), TokenRows):
        return
    shared = table_of.get(id(getattr(module, "weight", None)))
    if shared is not None:
        model.set_submodule(head, TokenRows(module, shared.ids, shared))


def tables_of_tokens(model: nn.Module) -> list[str]:
    """The paths of the table, and of the head where it has a weight of its own."""
    table, head = _path_of(model, "get_input_embeddings"), _path_of(model, "get_output_embeddings")
    assert table is not None, "a model that reads tokens has a table"
    shared = head is not None and model.get_submodule(head).weight is model.get_submodule(table).weight
    return [table] if head is None or shared else [table, head]


def _wrapped(model: nn.Module, path: str, ids: Sequence[int]) -> TokenRows:
    module = model.get_submodule(path)
    if isinstance(module, TokenRows):
        if module.ids != tuple(ids):
            raise TargetError(f'"{path}" has trained rows of other tokens already; remove that adapter first.')
        return module
    if not isinstance(module, nn.Embedding | nn.Linear):
        raise TargetError(f'"{path}" is a {type(module).__name__}, whose rows cannot be trained alone.')
    wrapper = TokenRows(module, ids)
    model.set_submodule(path, wrapper)
    return wrapper


def _path_of(model: nn.Module, getter: str) -> str | None:
    get = getattr(model, getter, None)
    module = get() if get is not None else None
    return next((path for path, one in model.named_modules() if one is module), None) if module is not None else None
