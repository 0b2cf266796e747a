"""DoRA, weight-decomposed LoRA, Liu et al. 2024 (arXiv 2402.09353): each output's length is learned apart.

    W' = m (W + s B A) / n,   n = ||W + s B A|| of each output (a row of W, as it is used),   m (O,)

m starts at ||W||, so an untrained layer is its host, within rounding where n is computed on another device or in
another order than m was. Turned to strength t (`scaled`) it is a part of the way, W + t (W' - W): with s turned
instead, the lengths would change in full. n is a constant to the gradient (the paper's section 4.3). The correction is

    (m/n - 1) (y - bias) + (m/n) s B A drop(x),   y = W x + bias

with the host's own y, so that W x is computed once; dropout meets the low-rank part alone. n is computed in float32 at
every call, from a matrix as large as W that is dropped again. Linear layers and Conv1D only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankwise.adapters.lora import LoRA


class DoRA(LoRA):
    """`transposed`: the host stores its weight as (I, O)."""

    additive = False

    def __init__(
        self, host: nn.Module, rank: int, scale: float, dropout: float, generator: torch.Generator, *, transposed: bool
    ) -> None:
        self._host = (host,)  # in a tuple: the host's parameters are none of the adapter's
        self._transposed = transposed
        outside, inside = self.base.shape
        super().__init__(inside, outside, rank, scale, dropout, generator)
        self.share = 1.0
        """Of the way from W to W'."""
        self.magnitude = nn.Parameter(_lengths(self.base.detach().to(self.A.dtype).contiguous()))

    @property
    def base(self) -> Tensor:
        """W (O, I)."""
        weight = self._host[0].weight
        assert isinstance(weight, Tensor), "a linear layer has one"
        return weight.T if self._transposed else weight

    def directions(self) -> Tensor:
        """W + s B A."""
        return torch.addmm(self.base.to(self.A.dtype), self.B, self.A, alpha=self.scale)

    def stretch(self) -> Tensor:
        """m / n of each output. An output without any weight has n = 0 and stays without."""
        with torch.no_grad():
            lengths = _lengths(self.directions())
        return self.magnitude / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        before, self.share = self.share, self.share * strength
        try:
            yield
        finally:
            self.share = before

    def delta(self) -> Tensor:
        return self.share * (self.stretch()[:, None] * self.directions() - self.base.to(self.A.dtype))

    def added_to(self, y: Tensor, x: Tensor) -> Tensor:
        bias, stretch = self._host[0].bias, self.stretch()
        bare = y - bias if isinstance(bias, Tensor) else y
        longer, turned = self.share * (stretch - 1), self.share * stretch
        return y + longer.to(y.dtype) * bare + turned.to(y.dtype) * self(x)


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1)
