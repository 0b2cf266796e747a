"""What every low-rank correction answers, and how two factors act on each kind of host.

    y = B A x,   A (R, I),  B (O, R)

for a linear layer; a lookup of A's columns for an embedding; a convolution to R channels and one of 1x1 for Conv2d,
whose I is channels times kernel (convolutions.py). How factors are trained (LoRA, AdaLoRA) and on what they act are
two things.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

Applied = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x, A and B to the correction; A and B are cast to what they meet."""


class Adapter(nn.Module, ABC):
    """The correction of one host. Parameters are float32 and computed in the dtype of x."""

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


def on_embedding(host: nn.Embedding) -> Applied:
    """Ids (...) to (..., O), with I the size of the vocabulary."""
    padding_idx, dtype = host.padding_idx, host.weight.dtype

    def applied(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.linear(F.embedding(x, A.T, padding_idx=padding_idx).to(dtype), B.to(dtype))

    return applied
