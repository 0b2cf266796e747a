"""What the blocks of all families are made of: linear layers in one step, a feed-forward layer, rotary angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.kernels.activation import Activated, Activation
from rankwise.kernels.linear import piece_of, shared_linears
from rankwise.kernels.norm import LayerNorm
from rankwise.kernels.prologue import Entrance, Straight, entered

ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu-tanh",
    "NewGELUActivation": "gelu-tanh",
}
"""By the class of the module; any other is called as it is."""
BY_LONGEST = {"dynamic", "longrope"}
"""Rotary positions that depend on the longest document of a call, and so on what lies beside a document."""


def linears(modules: Sequence[nn.Module], entrance: Entrance, *values: Tensor) -> Sequence[Tensor]:
    """Of what `entrance` makes of the values; in one step, unless one of them is more than two factors."""
    pieces = [piece_of(module) for module in modules]
    there = [piece for piece in pieces if piece is not None]
    if len(there) == len(pieces):
        return shared_linears(entrance, values, there)
    x = entered(entrance, *values)
    return [module(x) for module in modules]


def fed_forward(ups: Sequence[nn.Module], act: nn.Module, down: nn.Module, norm: Entrance, x: Tensor) -> Tensor:
    """`ups` are the one layer whose output is activated, or that one and the one that it gates."""
    values = linears(ups, norm, x)
    known = ACTIVATIONS.get(type(act).__name__)
    if known is not None:
        return linears([down], Activated(known), *values)[0]
    active = act(values[0])
    return linears([down], Straight(), active if len(values) == 1 else active * values[1])[0]


def layer_norm(module: nn.Module) -> LayerNorm:
    parts: Any = module
    return LayerNorm(parts.weight, parts.bias, parts.eps)


def angles(model: Any, x: Tensor, batch: Batch, *kind: str) -> tuple[Tensor, ...]:
    """Cosines and sines (T, D), or of as much of a head as is turned."""
    return tuple(values[0] for values in model.rotary_emb(x[None], batch.position_ids, *kind))


def turns_by_place(model: Any) -> bool:
    """Whether its rotary angles depend on a token's place in its document, and on nothing else."""
    kinds = getattr(getattr(model, "rotary_emb", None), "rope_type", "dynamic")
    return BY_LONGEST.isdisjoint(kinds.values() if isinstance(kinds, dict) else [kinds])
