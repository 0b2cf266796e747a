"""What every low-rank correction answers, and how two factors act on each kind of base layer.

    y = B A x,   A (R, I),  B (O, R)

for a linear layer; a lookup of A's columns for an embedding. How factors are trained (LoRA, AdaLoRA) and on what they
act are two things. A convolution has one to R channels with the base's kernel, and one of 1x1 to its outputs:

    y = B * (A * pad(x)),   A (R, C, kh, kw),  B (O, R, 1, 1),   change of the weight: (B A) as (O, C, kh, kw)

The first is laid over the image as the base layer is: stride, dilation and padding are the base's. timm's Conv2dSame
pads when it is called, by as much as the image needs, and more on the right and below than on the left and above.
Convolutions whose weight is not what they convolve with, or whose change is no weight of theirs, are refused by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import regex
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

Applied = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x, A and B to the correction; A and B are cast to what they meet."""
STANDARDIZED = regex.compile(r"Std|Standardi[sz]ed")
"""In the names of classes that normalise their weight before they convolve."""


class Adapter(nn.Module, ABC):
    """The correction of one base layer. Parameters are float32 and computed in the dtype of x."""

    additive: bool = True
    """Whether the correction is B A x and no more, so that several can be added up and two factors tell it all."""

    def __init__(self, applied: Applied, scale: float, dropout: float) -> None:
        super().__init__()
        self.applied = applied
        self.scale = scale
        self.dropout = dropout

    @property
    @abstractmethod
    def rank(self) -> int: ...

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the same change as a LoRA's: delta = scale * B @ A, if it is additive."""

    def pair(self) -> tuple[Tensor, Tensor] | None:
        """A with the scale in it, and B, where the correction of a vector is B A x and nothing more, for autograd."""
        return None

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Inside, the change is `strength` times itself, in every form it is computed, merged or written in."""
        before, self.scale = self.scale, self.scale * strength
        try:
            yield
        finally:
            self.scale = before

    @property
    def drops(self) -> bool:
        return self.training and self.dropout > 0

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.drops else x

    def added_to(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's output with this correction, where it is y without."""
        return y + self(x)

    def delta(self) -> Tensor:
        """The change as one matrix (O, I)."""
        A, B = self.factors()
        return self.scale * B @ A


def on_linear(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """x (..., I) to (..., O)."""
    return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))


def on_embedding(embedding: nn.Embedding) -> Applied:
    """Ids (...) to (..., O), with I the size of the vocabulary."""
    padding_idx, dtype = embedding.padding_idx, embedding.weight.dtype

    def applied(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.linear(F.embedding(x, A.T, padding_idx=padding_idx).to(dtype), B.to(dtype))

    return applied


def conv_problem(conv: nn.Conv2d) -> str:
    """Why no adapter can be laid over it, to follow "because"; "" where one can."""
    name = type(conv).__name__
    if parametrize.is_parametrized(conv, "weight") or "weight" not in conv._parameters:
        return "their weight is computed from other parameters, and a change could not be merged into it"
    if STANDARDIZED.search(name):
        return f"they are {name}, which standardises its weight, and a change could not be merged into it"
    if conv.groups != 1:
        return (
            "they convolve in groups, and the factors of PEFT's format would join channels that the groups keep apart"
        )
    if conv.padding_mode != "zeros":
        return f'they pad the image by "{conv.padding_mode}", and PEFT\'s factors by zeros'
    plain = type(conv).forward is nn.Conv2d.forward and type(conv)._conv_forward is nn.Conv2d._conv_forward
    return "" if plain or pads_when_called(conv) else f"they are {name}, which convolves in a way of its own"


def pads_when_called(conv: nn.Conv2d) -> bool:
    """timm's Conv2dSame, which models from TensorFlow have."""
    return type(conv).__name__ == "Conv2dSame" and type(conv).__module__.startswith("timm.")


def on_conv2d(layer: nn.Conv2d) -> Applied:
    """x (N, C, H, W) to (N, O, H', W'), with I = C times the kernel."""
    kernel, stride, dilation = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
    late = pads_when_called(layer)
    padding = 0 if late else layer.padding

    def applied(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        down = A.to(x.dtype).view(A.shape[0], x.shape[-3], *kernel)
        if late:
            x = F.pad(x, _padding(x, kernel, stride, dilation))
        return F.conv2d(F.conv2d(x, down, None, stride, padding, dilation), B.to(x.dtype)[:, :, None, None])

    return applied


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def _padding(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> list[int]:
    """Left, right, above and below, so that every `stride`-th place has its output."""
    sides: list[int] = []
    for axis in (1, 0):
        size = x.shape[axis - 2]
        reach = (-(-size // stride[axis]) - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        missing = max(reach - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return sides
