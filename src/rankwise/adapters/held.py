"""What an allocator must not forget over a pause: tensors by name, and facts that JSON can hold.

A flat buffer means nothing without the order of what lies in it, so the facts hold a hash of names and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import RunError, some


@dataclass(frozen=True)
class Held:
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def check_order(self, order: str) -> None:
        if self.facts.get("order") != order:
            raise RunError(
                "the checkpoint is of other adapters: their layers, the layers' order or the ranks are not those of "
                "this model and these settings."
            )

    @torch.no_grad()
    def fill(self, live: Mapping[str, Tensor]) -> None:
        """Copy into what is there; nothing may be missing, left over or of another shape or type."""
        wrong = sorted(self.tensors.keys() ^ live.keys())
        wrong += [name for name in live if name not in wrong and not alike(live[name], self.tensors[name])]
        if wrong:
            raise RunError(f"the checkpoint does not fit these adapters: {some(wrong, 4)}.")
        for name, into in live.items():
            into.copy_(self.tensors[name])


def alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def order_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    return sha256(json.dumps([[name, *shape] for name, shape in shapes]).encode()).hexdigest()
