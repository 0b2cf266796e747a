"""Frozen weights laid out as the processor's matrix products read them, for many passes over the same model.

y = x W^T: a general product lays W out anew at each call, which costs as much as the product itself where x has few
rows, as in decoding. oneDNN takes W laid out once. Inside `prepared` every linear layer whose weight was laid out does
so, whoever calls it: layers under an adapter, and an output layer that shares the embedding's weight, too.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rankwise.errors import is_out_of_memory
from rankwise.system.memory import available_memory

SMALLEST = 2**16
"""Elements of a weight below which laying out is not worth the call."""


@contextmanager
def prepared(module: nn.Module) -> Iterator[None]:
    """For passes during which no weight changes. Costs the weights' memory once more; where less than twice that is
    free, or the processor or the number format has no such product, the module is left as it is."""
    weights = _weights(module)
    laid_out: dict[int, tuple[Tensor, Tensor]] = {}
    if sum(weight.nbytes for weight in weights) * 2 <= available_memory():
        try:  # the weight is held too, since an id is known only as long as its owner lives
            laid_out = {id(weight): (weight, _laid_out(weight)) for weight in weights}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    with _PreparedLinear(laid_out) if laid_out else nullcontext():
        yield


class _PreparedLinear(TorchFunctionMode):
    def __init__(self, laid_out: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._laid_out = laid_out

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs and (known := self._laid_out.get(id(args[1]))) is not None:
            x, bias = args[0], args[2] if len(args) > 2 else None
            if _as_it_reads(x, known[0], bias):
                return torch.ops.mkldnn._linear_pointwise(x, known[1], bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _as_it_reads(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """The product takes a bias for contiguous, whatever its strides, and knows neither gradients nor autocast."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != weight.dtype:
        return False
    return bias is None or (bias.is_contiguous() and bias.dtype == x.dtype)


def _laid_out(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


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
