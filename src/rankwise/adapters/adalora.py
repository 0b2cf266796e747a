"""AdaLoRA, Zhang et al. 2023 (arXiv 2303.10512): the correction as triplets, each of which can be retired.

    delta W = s P^T diag(strength) Q,   P (R, O),  strength (R,),  Q (R, I)

A triplet is a row of P, one strength and a row of Q; both matrices hold it as a row, so that rows can be stacked and
taken out. s is the same for all layers and never changes: scaling by the rank that is left hurts (the authors' issue
12). A retired triplet has strength zero and still gets a gradient there, so it can come back. Which ones live is
decided between steps, in methods/adalora.py.

An adapted layer starts as its base layer. Either P starts at zero, as LoRA's B does, with orthogonal rows of Q, which
are as long as those of LoRA's A, and strengths of 1; or, as in the paper, the strengths start at zero and P and Q at
random. Then the first change is along random directions, which the loss hardly needs and other text notices
(lab/adalora_keeping.md).

A fused base layer (query, key and value in one matrix) gets one set of triplets for each part of its output, or no rank
could go to the value and be spared at the query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.adapters.adapter import Adapter, Applied, on_linear
from rankwise.config.adapters import Start

GAUSSIAN = 0.02
"""The authors' standard deviation."""
LENGTH = 3**-0.5
"""Expected length of a row of LoRA's A, with entries uniform in ±1/sqrt(I). A column of a table's B has sqrt(O)."""


class AdaLoRA(Adapter):
    def __init__(
        self, in_features: int, out_features: int, rank: int, scale: float, dropout: float, generator: torch.Generator,
        applied: Applied = on_linear, *, start: Start = "zero", looked_up: bool = False,
    ) -> None:  # fmt: skip
        """`looked_up`: of a table, whose Q is read and not multiplied. As in LoRA, it starts at zero in P's stead."""
        super().__init__(applied, scale, dropout)
        self.P = nn.Parameter(_vectors(rank, out_features, generator, start))
        self.strength = nn.Parameter(torch.zeros(rank))
        self.Q = nn.Parameter(_vectors(rank, in_features, generator, start))
        if start == "zero":
            self._start_as_lora(looked_up)
        self.cost = in_features + out_features
        """Parameters of one triplet in the adapter that is written: a row of A and a column of B."""
        self.decided = False
        """Whether it is known which triplets are left."""

    @torch.no_grad()
    def _start_as_lora(self, looked_up: bool) -> None:
        zero, other, length = (self.Q, self.P, self.P.shape[1] ** 0.5) if looked_up else (self.P, self.Q, LENGTH)
        zero.zero_()
        other.mul_(length)
        self.strength.fill_(1.0)

    @property
    def rank(self) -> int:
        return self.strength.shape[0]

    @property
    def parts(self) -> tuple[AdaLoRA, ...]:
        return (self,)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Without the triplets of strength zero, which change nothing."""
        alive = self.strength != 0
        return self.Q[alive], (self.P * self.strength[:, None])[alive].T

    def down(self) -> Tensor:
        """Q with strengths and scale in it: as many numbers as Q, where x has many more."""
        return self.Q * (self.strength * self.scale)[:, None]

    def pair(self) -> tuple[Tensor, Tensor] | None:
        return None if self.drops else (self.down(), self.P.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.applied(self.dropped(x), self.down(), self.P.T)


class FusedAdaLoRA(Adapter):
    """One AdaLoRA for each part of the output of a fused linear layer. `rows` are each part's places in the output."""

    def __init__(self, parts: Sequence[AdaLoRA], rows: Sequence[Tensor], names: Sequence[str]) -> None:
        super().__init__(on_linear, parts[0].scale, parts[0].dropout)
        self.names = tuple(names)
        self.members = nn.ModuleList(parts)
        positions = torch.argsort(torch.cat(list(rows)))
        self.positions: Tensor
        self.register_buffer("positions", positions, persistent=False)
        self.in_order = bool((positions == torch.arange(len(positions))).all())
        for part in parts:
            part.cost = part.Q.shape[1] + len(positions)  # B is written whole, with zeros outside the part's rows

    @property
    def parts(self) -> tuple[AdaLoRA, ...]:
        return tuple(part for part in self.members if isinstance(part, AdaLoRA))

    @property
    def rank(self) -> int:
        return sum(part.rank for part in self.parts)

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.scaled(strength))
            with super().scaled(strength):
                yield

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of a layer whose parts (such as q, k and v) have ranks of their own: a part's columns of B are zero
        outside the rows of the part."""
        pairs = [part.factors() for part in self.parts]
        blocks = torch.block_diag(*(B for _, B in pairs))
        return torch.cat([A for A, _ in pairs]), blocks[self.positions]

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropped(x)
        ranks = [part.rank for part in self.parts]
        hidden = F.linear(x, torch.cat([part.down() for part in self.parts]).to(x.dtype)).split(ranks, -1)
        y = torch.cat([h @ part.P.to(x.dtype) for h, part in zip(hidden, self.parts, strict=True)], -1)
        return y if self.in_order else y.index_select(-1, self.positions)


def is_decided(adapter: Adapter) -> bool:
    parts = adapter.parts if isinstance(adapter, AdaLoRA | FusedAdaLoRA) else ()
    return all(part.decided for part in parts)


def _vectors(rank: int, width: int, generator: torch.Generator, start: Start) -> Tensor:
    """Orthonormal rows, unless they are to be Gaussian."""
    drawn = torch.randn(width, rank, generator=generator)
    return drawn.T.contiguous() * GAUSSIAN if start == "gaussian" else torch.linalg.qr(drawn).Q.T.contiguous()
