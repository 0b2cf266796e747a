"""A frozen matrix that is stored in fewer bits and becomes numbers only while a product needs them.

    y = x W^T        W is unpacked, multiplied and dropped
    dx = g W         W is unpacked again: nothing of it is saved for the backward pass

It is a tensor like any other to the modules around it: it has a shape, a number format in which it takes part in
products, and a device. What is stored are its parts, which never change; writing to it is refused. Operations that know
nothing of quantisation see the unpacked matrix, so no result depends on an operation's being listed here.

Quantised weights as ordinary numbers again, for whatever writes or changes them: merging and saving.

They are unpacked in float32, which is exact for what the parts stand for, and rounded once to the format of products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
Handler = Callable[..., Any]


class Format(Protocol):
    """How a matrix (O, I) is stored."""

    @property
    def name(self) -> str: ...

    def unpack(
        self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """The matrix (O, I), and a factor of each row (O,) that it still has to be multiplied by, or None."""
        ...

    def rows(self, parts: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype, index: Tensor) -> Tensor:
        """Rows `index` (N,) of the matrix, (N, I)."""
        ...


class Multiplying(ABC):
    """A format with products of its own, which unpack nothing."""

    @abstractmethod
    def product(
        self, x: Tensor, parts: Sequence[Tensor], transposed: bool, bias: Tensor | None, into: Tensor | None
    ) -> Tensor:
        """x (N, I) times the transpose of the matrix, or x (N, O) times the matrix itself, with a bias. It is added to
        `into`, in place, where that is given."""


class QuantizedTensor(torch.Tensor):
    """`parts` store a matrix of `stored_shape` (O, I); `transposed` is for its transpose (I, O)."""

    format: Format
    parts: tuple[Tensor, ...]
    stored_shape: tuple[int, int]
    transposed: bool

    @staticmethod
    def __new__(
        cls: Any, format: Format, parts: Sequence[Tensor], stored_shape: tuple[int, int], dtype: torch.dtype,
        transposed: bool = False,
    ) -> QuantizedTensor:  # fmt: skip
        shape = stored_shape[::-1] if transposed else stored_shape
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=parts[0].device, requires_grad=False)

    def __init__(
        self, format: Format, parts: Sequence[Tensor], stored_shape: tuple[int, int], dtype: torch.dtype,
        transposed: bool = False,
    ) -> None:  # fmt: skip
        self.format, self.parts = format, tuple(parts)
        self.stored_shape, self.transposed = stored_shape, transposed

    @property
    def stored_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def unpacked(self) -> Tensor:
        """The numbers, as an ordinary tensor of this shape and number format."""
        matrix, factor = self.format.unpack(self.parts, self.stored_shape, self.dtype)
        if factor is not None:
            matrix.mul_(factor[:, None])
        return matrix.T if self.transposed else matrix

    def like(
        self, *, parts: Sequence[Tensor] | None = None, dtype: torch.dtype | None = None, turned: bool = False
    ) -> QuantizedTensor:
        """This tensor with other packed parts, computed in another dtype, or transposed."""
        return QuantizedTensor(
            self.format, self.parts if parts is None else parts, self.stored_shape, dtype or self.dtype,
            self.transposed != turned,
        )  # fmt: skip

    def __repr__(self, **_: Any) -> str:
        return f"QuantizedTensor({self.format.name}, {tuple(self.shape)}, {self.dtype}, {self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """Torch moves a module's parameters by swapping such tensors as a whole, instead of changing them in place."""
        names = [f"_part_{number}" for number in range(len(self.parts))]
        for name, part in zip(names, self.parts, strict=True):
            setattr(self, name, part)
        return names, (self.format, self.stored_shape, self.dtype, self.transposed)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], about: Any, *_: Any) -> QuantizedTensor:
        format, shape, dtype, transposed = about
        return QuantizedTensor(format, list(inner.values()), shape, dtype, transposed)

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(  # pyright: ignore[reportAssignmentType]  torch's own signature
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        handler = HANDLERS.get(func)
        result = NotImplemented if handler is None else handler(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        _refuse_writing(func, args)
        return func(*unpacked_in(args), **unpacked_in(kwargs or {}))


def unpacked(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that may be stored in fewer bits."""
    return tensor.unpacked() if isinstance(tensor, QuantizedTensor) else tensor


def is_quantized(tensor: Tensor) -> bool:
    """Also of a parameter, which is the tensor itself with a mark."""
    return isinstance(tensor, QuantizedTensor)


def stored_bytes(tensor: Tensor) -> int:
    return tensor.stored_bytes if isinstance(tensor, QuantizedTensor) else tensor.nbytes


def unpacked_in(value: Any) -> Any:
    return tree_map_only(QuantizedTensor, QuantizedTensor.unpacked, value)


def _refuse_writing(func: Any, args: Sequence[Any]) -> None:
    for argument, value in zip(func._schema.arguments, args, strict=False):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(value, QuantizedTensor):
            raise RuntimeError(f"{func} writes to a quantised weight, which is frozen")


def _same(self: QuantizedTensor, **_: Any) -> QuantizedTensor:
    return self.like()


def _turned(self: QuantizedTensor, *dims: Any) -> Any:
    swaps = not dims or {one % 2 for one in dims} == {0, 1}
    return self.like(turned=True) if swaps else NotImplemented


def _permuted(self: QuantizedTensor, dims: Sequence[int]) -> QuantizedTensor:
    return self.like(turned=[one % 2 for one in dims] == [1, 0])


def _to_copy(
    self: QuantizedTensor, *, dtype: torch.dtype | None = None, device: Any = None, non_blocking: bool = False, **_: Any
) -> Any:
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    parts = self.parts if device is None else [part.to(device, non_blocking=non_blocking) for part in self.parts]
    return self.like(parts=parts, dtype=dtype)


def _operands(x: Tensor, weight: QuantizedTensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x, D, factor of the outputs) for x @ weight; a factor of the inputs is part of x already. Factors stay in
    float32, since rounding one would change all numbers of its row alike."""
    matrix, factor = weight.format.unpack(weight.parts, weight.stored_shape, weight.dtype)
    if weight.transposed:
        return x, matrix.T, factor
    return x if factor is None else scaled(x, factor), matrix, None


def scaled(values: Tensor, factor: Tensor) -> Tensor:
    """Values (T, N) times a float32 factor (N,) of each column, rounded once: a factor that was rounded to bfloat16
    would be off by the same share in all of its column. Operands of one number format, since a product of two formats
    is slower than the conversion."""
    exact = values.to(torch.promote_types(values.dtype, factor.dtype))
    return (exact * factor).to(values.dtype)


def _mm(x: Tensor, weight: Tensor) -> Any:
    if not isinstance(weight, QuantizedTensor) or isinstance(x, QuantizedTensor):
        return NotImplemented
    if isinstance(weight.format, Multiplying):
        return weight.format.product(x, weight.parts, weight.transposed, None, None)
    x, matrix, factor = _operands(x, weight)
    y = x @ matrix
    return y if factor is None else scaled(y, factor)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if not isinstance(weight, QuantizedTensor) or isinstance(x, QuantizedTensor) or isinstance(bias, QuantizedTensor):
        return NotImplemented
    if isinstance(weight.format, Multiplying) and beta == alpha == 1 and bias.ndim == 1:
        return weight.format.product(x, weight.parts, weight.transposed, bias, None)
    x, matrix, factor = _operands(x, weight)
    if factor is None:
        return torch.addmm(bias, x, matrix, beta=beta, alpha=alpha)
    return scaled(x @ matrix, factor * alpha).add_(bias, alpha=beta)


def _addmm_in_place(y: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if not isinstance(weight, QuantizedTensor) or isinstance(x, QuantizedTensor) or isinstance(y, QuantizedTensor):
        return NotImplemented
    if isinstance(weight.format, Multiplying) and beta == alpha == 1:
        return weight.format.product(x, weight.parts, weight.transposed, None, y)
    x, matrix, factor = _operands(x, weight)
    if factor is None:
        return y.addmm_(x, matrix, beta=beta, alpha=alpha)
    return y.mul_(beta).add_(scaled(x @ matrix, factor), alpha=alpha)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """In inference mode, where torch does not make it of `mm` and `addmm`."""
    if not isinstance(weight, QuantizedTensor) or not isinstance(weight.format, Multiplying):
        return NotImplemented
    y = weight.format.product(x.flatten(0, -2), weight.parts, not weight.transposed, bias, None)
    return y.view(*x.shape[:-1], -1)


def _embedding(weight: Tensor, index: Tensor, *_: Any, **__: Any) -> Any:
    if not isinstance(weight, QuantizedTensor) or weight.transposed:
        return NotImplemented
    rows = weight.format.rows(weight.parts, weight.stored_shape, weight.dtype, index.flatten())
    return rows.view(*index.shape, -1)


def _index_select(self: Tensor, dim: int, index: Tensor) -> Any:
    return _embedding(self, index) if dim % 2 == 0 else NotImplemented


HANDLERS: dict[Any, Handler] = {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten.t.default: _turned,
    aten.transpose.int: _turned,
    aten.permute.default: _permuted,
    aten._to_copy.default: _to_copy,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.addmm_.default: _addmm_in_place,
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
    aten.index_select.default: _index_select,
}
"""Operations that do not unpack the whole matrix, or drop it as soon as they can. What answers NotImplemented is
computed with the unpacked matrix."""


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
