"""The modules of a model, as targets see them: of a model in memory and of a plan alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AUTO, ALL_LINEAR, ALL_CONV = "auto", "all-linear", "all-conv"
"""Targets that are no names."""
HostKind = Literal["linear", "conv1d", "conv2d", "embedding"]
"""Kinds of layers that can have an adapter. A conv1d is GPT-2's linear layer, whose weight is stored as (I, O)."""


@dataclass(frozen=True)
class Seen:
    """What targets need to know about a module.

    `kind` is None for a module that cannot be adapted, and `name` is its class. `tied` marks a linear layer that shares
    an embedding's weight, and `head` the layer that computes the logits. `channels` are the input channels of a
    convolution, and `problem` says why a convolution cannot be adapted. `stacked` are the names of a module's
    parameters that hold the weights of several experts each (experts.py).
    """

    kind: HostKind | None
    name: str
    tied: bool = False
    head: bool = False
    channels: int = 0
    problem: str = ""
    stacked: tuple[str, ...] = ()


Modules = Mapping[str, Seen]
"""Modules by path, in the model's order."""


@dataclass(frozen=True)
class Selection:
    """The layers that targets mean: `paths` in the model's order. `notes` are sentences about names that were
    understood, and about layers that were left out."""

    paths: list[str]
    notes: list[str]


def layer_number(path: str) -> int | None:
    """Number of the block that a module belongs to: the first number in its path."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def linear_layers(modules: Modules, *, also_head: bool = False) -> list[str]:
    """What `all-linear` means."""
    return [path for path, seen in modules.items()
            if seen.kind in ("linear", "conv1d") and (also_head or not seen.head)]  # fmt: skip
