"""Quantised weights as ordinary numbers again, for whatever writes or changes them: merging and saving.

They are unpacked in float32, which is exact for what the parts stand for, and rounded once to the format of products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankwise.kernels.quantized.tensor import QuantizedTensor, is_quantized


def in_full(weight: Tensor) -> Tensor:
    """The numbers in float32, or in float64 where they are that already."""
    if isinstance(weight, QuantizedTensor):
        return weight.like(dtype=torch.float32).unpacked()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def unpack_weights(module: nn.Module) -> list[str]:
    """Give a module ordinary weights in place of its quantised ones, and return their names. Layers that share a weight
    go on sharing it."""
    ordinary: dict[int, nn.Parameter] = {}
    names: list[str] = []
    for path, owner in module.named_modules(remove_duplicate=False):
        for name, weight in list(owner.named_parameters(recurse=False)):
            if is_quantized(weight):
                if id(weight) not in ordinary:
                    ordinary[id(weight)] = nn.Parameter(in_full(weight).to(weight.dtype), requires_grad=False)
                setattr(owner, name, ordinary[id(weight)])
                names.append(f"{path}.{name}" if path else name)
    return names
