"""Low-rank adaptation, Hu et al. 2021 (arXiv 2106.09685).

    h = W x + s B A drop(x),   A (R, I),  B (O, R),   s = alpha / rank, or alpha / sqrt(rank)

The root is rank-stabilised LoRA's (Kalajdzievski 2023, arXiv 2312.03732).

A starts uniform in ±1/sqrt(I) (kaiming-uniform with a = sqrt 5), B at zero, so an adapted layer starts as its
host; s is a plain float and never part of a parameter, so that a learning rate means the same at every rank and alpha.
For an embedding the roles are exchanged: A starts at zero and B normal, because the lookup reads columns of A.
Over stacked experts, each expert has factors of its own: A (E, R, I) and B (E, O, R).
"""

from __future__ import annotations

import math

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
