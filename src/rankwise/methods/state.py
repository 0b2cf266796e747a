"""What a trainable must not lose over a pause between two steps: tensors by name, and facts that JSON can hold.

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
from rankwise.models.sharding import local_part, part_of


@dataclass(frozen=True)
class TrainableState:
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def check_layout(self, layout: str) -> None:
        """RunError where the tensors belong to other layers, another order of them or other ranks."""
        if self.facts.get("order") != layout:
            raise RunError(
                "the checkpoint belongs to other adapters: its layers, their order or their ranks differ from those of "
                "this model and these settings."
            )

    @torch.no_grad()
    def copy_into(self, live: Mapping[str, Tensor]) -> None:
        """Overwrite the live tensors; none may be missing, left over, or of another shape or type."""
        wrong = sorted(self.tensors.keys() ^ live.keys())
        wrong += [name for name in live if name not in wrong and not _same_kind(live[name], self.tensors[name])]
        if wrong:
            raise RunError(f"the checkpoint does not fit these adapters: {some(wrong, 4)}.")
        for name, target in live.items():
            local_part(target).copy_(part_of(self.tensors[name], target))

    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Into the live parameters of a state that `state_of` made."""
        self.check_layout(_layout_of_tensors(parameters))
        self.copy_into({name: parameter.detach() for name, parameter in parameters.items()})


def state_of(parameters: Mapping[str, Tensor]) -> TrainableState:
    """Parameters whose shapes stay, and nothing else. The tensors are the live ones."""
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    return TrainableState(tensors, {"order": _layout_of_tensors(tensors)})


def _layout_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    return layout_of((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def layout_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """A hash of names and shapes in their order."""
    return sha256(json.dumps([[name, *shape] for name, shape in shapes]).encode()).hexdigest()
