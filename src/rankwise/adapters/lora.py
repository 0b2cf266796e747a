"""Low-rank adaptation, Hu et al. 2021 (arXiv 2106.09685).

    h = W x + s B A drop(x),   s = alpha / rank,   A (R, I),  B (O, R)

A starts uniform in ±1/sqrt(I) (kaiming-uniform with a = sqrt 5), B at zero, so an adapted layer starts as its
host. Both are held in float32 and computed in the dtype of x; s is a plain float and never part of a parameter, so
that a learning rate means the same at every rank and alpha. For an embedding the roles are exchanged: A starts at
zero and B normal, because the lookup reads columns of A.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRA(nn.Module):
    """The correction of one linear layer. x (..., I) to (..., O)."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, rank))
        self.scale = alpha / rank
        self.dropout = dropout
        self.reset(generator)

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.A.shape[1])
        self.A.copy_((torch.rand(self.A.shape, generator=generator) * 2 - 1) * bound)
        self.B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x, self.A.to(x.dtype)) * self.scale, self.B.to(x.dtype))

    def delta(self) -> Tensor:
        """The change as one matrix (O, I)."""
        return self.scale * self.B @ self.A


class EmbeddingLoRA(LoRA):
    """The correction of a lookup table. Ids (...) to (..., O), with I the size of the vocabulary."""

    def __init__(self, host: nn.Embedding, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(host.num_embeddings, host.embedding_dim, rank, alpha, 0.0, generator)
        self.padding_idx = host.padding_idx
        self.dtype = host.weight.dtype

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        self.A.zero_()
        self.B.copy_(torch.randn(self.B.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.embedding(x, self.A.T, padding_idx=self.padding_idx).to(self.dtype)
        return F.linear(rows * self.scale, self.B.to(self.dtype))
