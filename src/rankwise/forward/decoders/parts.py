"""Parts that all decoder families share: linear layers with a common input, feed-forward layers, rotary angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.kernels.activation import Activation, ActivationPrologue
from rankwise.kernels.linear import linear_spec_of, shared_linears
from rankwise.kernels.norm import LayerNorm
from rankwise.kernels.prologue import Identity, Prologue, apply_prologue

ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu-tanh",
    "NewGELUActivation": "gelu-tanh",
}
"""Kernels by the class of the activation module; any other module is called as it is."""
BY_LONGEST = {"dynamic", "longrope"}
"""Kinds of rotary positions that depend on the longest sequence of a call, and so on the neighbours of a sequence."""


def linears(modules: Sequence[nn.Module], prologue: Prologue, *values: Tensor) -> Sequence[Tensor]:
    """Apply linear layers to the output of `prologue`, as one autograd function unless an adapter on one of them has no
    two-factor form."""
    specs = [linear_spec_of(module) for module in modules]
    there = [spec for spec in specs if spec is not None]
    if len(there) == len(specs):
        return shared_linears(prologue, values, there)
    x = apply_prologue(prologue, *values)
    return [module(x) for module in modules]


def fed_forward(ups: Sequence[nn.Module], act: nn.Module, down: nn.Module, norm: Prologue, x: Tensor) -> Tensor:
    """Apply a feed-forward layer. `ups` is the layer whose output is activated, or the pair of gate and up
    projection."""
    values = linears(ups, norm, x)
    known = ACTIVATIONS.get(type(act).__name__)
    if known is not None:
        return linears([down], ActivationPrologue(known), *values)[0]
    active = act(values[0])
    return linears([down], Identity(), active if len(values) == 1 else active * values[1])[0]


def layer_norm(module: nn.Module) -> LayerNorm:
    parts: Any = module
    return LayerNorm(parts.weight, parts.bias, parts.eps)


def angles(model: Any, x: Tensor, batch: Batch, *kind: str) -> tuple[Tensor, ...]:
    """Return cosines and sines (T, D), or fewer columns if only a part of a head is rotated."""
    return tuple(values[0] for values in model.rotary_emb(x[None], batch.position_ids, *kind))


def turns_by_place(model: Any) -> bool:
    """Tell whether rotary angles depend only on a token's position in its sequence."""
    kinds = getattr(getattr(model, "rotary_emb", None), "rope_type", "dynamic")
    return BY_LONGEST.isdisjoint(kinds.values() if isinstance(kinds, dict) else [kinds])
