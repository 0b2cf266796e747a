"""A module that is trained whole beside an adapter, such as the new head of a classifier.

The trained weights are a copy in float32, one for each adapter's name, and the base's own module stays as it was. So
the base can be computed at any time, and is given back when the adapter is removed. PEFT calls these `modules_to_save`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.wrapper import Wrapper
from rankwise.errors import TargetError, some


class HeadWrapper(Wrapper):
    """The base's module and its trained copies, of which at most one is active."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.copies = nn.ModuleDict()
        self.active: str | None = None
        self.mixed: Mapping[str, Tensor] | None = None
        """Where each row of a batch has a copy of its own: the numbers of the rows of each (by_row.py)."""

    def add(self, name: str) -> None:
        self.copies[name] = deepcopy(self.base_layer).float().requires_grad_(True)

    @property
    def is_empty(self) -> bool:
        return not self.copies

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mixed is not None:
            return self._by_row(args[0], self.mixed)
        if self.active is None:
            return self.base_layer(*args, **kwargs)
        return self.copies[self.active](*map(_in_float32, args), **{k: _in_float32(v) for k, v in kwargs.items()})

    def _by_row(self, x: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        y = self.base_layer(x)
        for name, numbers in rows.items():
            y[numbers] = self.copies[name](_in_float32(x[numbers])).to(y.dtype)
        return y

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Inside, the active copy is `factor` of the way from the base's weights to the trained ones."""
        trained = [] if self.active is None else list(self.copies[self.active].parameters())
        before = [parameter.data for parameter in trained]
        try:
            for parameter, base in zip(trained, self.base_layer.parameters(), strict=bool(trained)):
                parameter.data = torch.lerp(base.detach().to(parameter.dtype), parameter.data, factor)
            yield
        finally:
            for parameter, data in zip(trained, before, strict=True):
                parameter.data = data


def head_paths(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """The modules of these names, each the whole path or its end."""
    modules = [path for path, _ in model.named_modules() if path]
    paths = [path for path in modules if any(path == head or path.endswith(f".{head}") for head in heads)]
    missing = [head for head in heads if not any(path == head or path.endswith(f".{head}") for path in paths)]
    if missing:
        raise TargetError(
            f"this {type(model).__name__} has no module {some(missing)}, which should be trained beside the adapter."
        )
    return paths


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
