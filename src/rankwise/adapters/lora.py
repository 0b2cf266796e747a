"""Low-rank adaptation, Hu et al. 2021 (arXiv 2106.09685), and DoRA, Liu et al. 2024 (arXiv 2402.09353).

    h = W x + s B A drop(x),   A (R, I),  B (O, R),   s = alpha / rank, or alpha / sqrt(rank)

The root is rank-stabilised LoRA's (Kalajdzievski 2023, arXiv 2312.03732).

A starts uniform in ±1/sqrt(I) (kaiming-uniform with a = sqrt 5), B at zero, so an adapted layer starts as its
base layer; s is a plain float and never part of a parameter, so that a learning rate means the same at every rank and
alpha.
For an embedding the roles are exchanged: A starts at zero and B normal, because the lookup reads columns of A.
Over stacked experts, each expert has factors of its own: A (E, R, I) and B (E, O, R).

DoRA learns the length of each output apart:

    W' = m (W + s B A) / n,   n = ||W + s B A|| of each output (a row of W, as it is used),   m (O,)

m starts at ||W||, so an untrained layer is its base layer, within rounding where n is computed on another device or in
another order than m was. Turned to strength t (`scaled`) it is a part of the way, W + t (W' - W): with s turned
instead, the lengths would change in full. n is a constant to the gradient (the paper's section 4.3). The correction is

    (m/n - 1) (y - bias) + (m/n) s B A drop(x),   y = W x + bias

with the base layer's own y, so that W x is computed once; dropout meets the low-rank part alone. n is computed in
float32 at every call, from a matrix as large as W that is dropped again. Linear layers and Conv1D only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter, Applied, on_linear


class LoRA(Adapter):
    """`looked_up`: of a table, whose A is read and not multiplied. `experts` have factors of their own each."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, scale: float, dropout: float, generator: torch.Generator,
        applied: Applied = on_linear, *, looked_up: bool = False, experts: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(applied, scale, 0.0 if looked_up else dropout)
        each = (experts,) if experts else ()
        self.A = nn.Parameter(torch.empty(*each, rank, in_features))
        self.B = nn.Parameter(torch.empty(*each, out_features, rank))
        self.looked_up = looked_up
        self.reset(generator)

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def grown(self) -> nn.Parameter:
        """The factor that starts at zero, and by which alone the correction grows at first."""
        return self.A if self.looked_up else self.B

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        if self.looked_up:
            self.A.zero_()
            self.B.copy_(torch.randn(self.B.shape, generator=generator))
            return
        bound = 1 / math.sqrt(self.A.shape[-1])
        self.A.copy_((torch.rand(self.A.shape, generator=generator) * 2 - 1) * bound)
        self.B.zero_()

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    def pair(self) -> tuple[Tensor, Tensor] | None:
        plain = self.additive and not self.looked_up and not self.drops
        return (self.A * self.scale, self.B) if plain else None

    def forward(self, x: Tensor) -> Tensor:
        return self.applied(self.dropped(x), self.A * self.scale, self.B)


class DoRA(LoRA):
    """`transposed`: the base layer stores its weight as (I, O)."""

    additive = False

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        *,
        transposed: bool,
    ) -> None:
        self._base_layer = (base_layer,)  # in a tuple: the base layer's parameters are none of the adapter's
        self._transposed = transposed
        outside, inside = self.base.shape
        super().__init__(inside, outside, rank, scale, dropout, generator)
        self.share = 1.0
        """The share of the way from W to W' that the layer goes."""
        self.magnitude = nn.Parameter(_lengths(self.base.detach().to(self.A.dtype).contiguous()))

    @property
    def base(self) -> Tensor:
        """W (O, I)."""
        weight = self._base_layer[0].weight
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
        bias, stretch = self._base_layer[0].bias, self.stretch()
        bare = y - bias if isinstance(bias, Tensor) else y
        longer, turned = self.share * (stretch - 1), self.share * stretch
        return y + longer.to(y.dtype) * bare + turned.to(y.dtype) * self(x)


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1)
