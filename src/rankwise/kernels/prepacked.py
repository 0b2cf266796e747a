"""Frozen weights repacked once into the layout that the CPU's matrix products read, for many passes over one model.

In y = x W^T a general product repacks W at each call, which costs as much as the product itself where x has few rows,
as in decoding. oneDNN accepts W packed in advance. Inside `prepacked_weights` every linear layer uses the packed copy
of its weight if there is one, including layers under an adapter and an output layer that shares the embedding's weight.
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
"""Weights with fewer elements are not packed, because the call would cost more than it saves."""


@contextmanager
def prepacked_weights(module: nn.Module) -> Iterator[None]:
    """Use packed weights inside the block, during which no weight may change. This needs as much memory again as the
    weights. The module is left as it is if less than twice that is free, or if the CPU or the dtype has no such
    product."""
    weights = _weights(module)
    packed: dict[int, tuple[Tensor, Tensor]] = {}
    if sum(weight.nbytes for weight in weights) * 2 <= available_memory():
        try:  # keep the weight alive too, since its id is only unique during its lifetime
            packed = {id(weight): (weight, _pack(weight)) for weight in weights}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    with _PrepackedLinear(packed) if packed else nullcontext():
        yield


class _PrepackedLinear(TorchFunctionMode):
    def __init__(self, packed: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._packed = packed
        self._at = {weight.data_ptr(): id(weight) for weight, _ in packed.values()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs and (known := self._packed.get(id(args[1]))) is not None:
            x, bias = args[0], args[2] if len(args) > 2 else None
            if _applies(x, known[0], bias):
                return torch.ops.mkldnn._linear_pointwise(x, known[1], bias, "none", [], "")
        if func is Tensor.addmm_ and not kwargs and (known := self._known_transposed(args[2])) is not None:
            sums, x = args[0], args[1]
            if _applies(x, known[0], None) and sums.dtype == x.dtype:
                return torch.ops.mkldnn._linear_pointwise.binary(x, sums, known[1], None, "add")
        return func(*args, **(kwargs or {}))

    def _known_transposed(self, matrix: Tensor) -> tuple[Tensor, Tensor] | None:
        """The weight whose transpose this is."""
        known = self._packed.get(self._at.get(matrix.data_ptr(), -1))
        there = known is not None and (known[0].T.shape, known[0].T.stride()) == (matrix.shape, matrix.stride())
        return known if there else None


def _applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Check that the packed product applies: it assumes a contiguous bias and supports neither gradients nor
    autocast."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != weight.dtype:
        return False
    return bias is None or (bias.is_contiguous() and bias.dtype == x.dtype)


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def _weights(module: nn.Module) -> list[Tensor]:
    """List the weights of linear layers that can be packed, each once."""
    weights = {id(part.weight): part.weight for part in module.modules() if type(part) is nn.Linear}
    return [weight for weight in weights.values() if _can_be_packed(weight)]


def _can_be_packed(weight: Tensor) -> bool:
    """Allow packing only where it was measured to be faster: on x86, in float32 or in bfloat16 that the CPU
    supports."""
    if weight.device.type != "cpu" or weight.layout != torch.strided or weight.numel() < SMALLEST:
        return False
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
