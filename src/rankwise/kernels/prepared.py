"""Frozen weights laid out as the processor's matrix products read them, for many passes over the same model.

y = x W^T: a general product lays W out anew at each call, which costs as much as the product itself where x has few
rows, as in decoding. oneDNN takes W laid out once. Inside `prepared` every linear layer whose weight was laid out does
so, whoever calls it: layers under an adapter, and an output layer that shares the embedding's weight, too.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SMALLEST = 2**16
"""Elements of a weight below which laying out is not worth the call."""
SHARE = 4
"""At most one part in so many of the machine's memory is spent on it."""


@contextmanager
def prepared(module: nn.Module) -> Iterator[None]:
    """For passes without gradients, during which no weight changes. Costs the weights' memory once more; where that is
    too much, or the processor or the number format has no such product, nothing is done."""
    weights = _weights(module)
    if sum(weight.nbytes for weight in weights) * SHARE > psutil.virtual_memory().total:
        weights = []
    with _PreparedLinear(weights):
        yield


class _PreparedLinear(TorchFunctionMode):
    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._weights = weights  # held, since an id is known only as long as its owner lives
        self._laid_out: Mapping[int, Tensor] = {
            id(weight): torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None) for weight in weights
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs and (laid_out := self._laid_out.get(id(args[1]))) is not None:
            x, bias = args[0], args[2] if len(args) > 2 else None
            if x.dtype == args[1].dtype:
                return torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _weights(module: nn.Module) -> list[Tensor]:
    """Those of linear layers, each once."""
    found = {id(part.weight): part.weight for part in module.modules() if type(part) is nn.Linear}
    return [weight for weight in found.values() if _can_be_laid_out(weight)]


def _can_be_laid_out(weight: Tensor) -> bool:
    """Only where it was measured to be faster: x86, in float32 or in a bfloat16 that the processor has."""
    if weight.device.type != "cpu" or weight.layout != torch.strided or weight.numel() < SMALLEST:
        return False
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
