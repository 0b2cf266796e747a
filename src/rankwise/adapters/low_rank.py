"""The nearest matrix of a given rank, and how far it is: for changes that are laid out, and for those that are factors.

    X (m, n) = U diag(s) V^T,   X_r = the first r terms,   |X - X_r|^2 = s_{r+1}^2 + s_{r+2}^2 + ...     (Eckart-Young)

A laid-out change is divided by the eigenvectors U of X X^T (or X^T X, whichever is smaller) in float64, which is faster
than a singular value decomposition and gives singular values down to 1e-8 of the largest. For a small rank
of a large matrix, U comes from power iterations on a random start (Halko, Martinsson and Tropp 2011, arXiv 0909.4061),
until an iteration no longer lowers the error. In each case the error is measured of what is returned,

    |X - Q Q^T X|^2 = |X|^2 - |Q^T X|^2     for Q with orthonormal columns,

so it is true even where the iterations did not quite arrive. Factors B A are never laid out: with B = Q_b R_b and
A^T = Q_a R_a the small core R_b R_a^T has their singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 1536
"""Up to this smaller side a matrix is always decomposed in full."""
OVERSAMPLED, MOST_ITERATIONS, CONVERGED = 16, 60, 1e-5
"""Columns of the random start beyond the rank; iterations at most; the relative change of the captured error at which
they end."""
LOST = 1e-15
"""Energies below this share of the whole are rounding."""


@dataclass(frozen=True)
class LowRank:
    """B (m, r) and A (r, n) in float64, each with the square root of the singular values, and what they leave out."""

    B: Tensor
    A: Tensor
    norm: float
    """Frobenius norm of what was approximated."""
    error: float
    """Frobenius norm of what is left out."""

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def relative(self) -> float:
        return self.error / self.norm if self.norm else 0.0


def smallest_rank(values: Tensor, error: float) -> int:
    """How many of these singular values, sorted downwards, are needed so that the rest is `error` of the whole."""
    energy = values.square()
    rest = energy.sum() - energy.cumsum(0)
    allowed = error * error * energy.sum()
    return int((rest > allowed).sum()) + 1 if bool(energy.sum() > 0) and error < 1 else 0


def of_matrix(X: Tensor, rank: int | None, error: float | None, seed: int = 0) -> LowRank:
    """Approximate X (m, n) by a given rank, or by the smallest rank with this relative error."""
    X = X.double()
    norm = float(torch.linalg.vector_norm(X))
    if norm == 0:
        return LowRank(X.new_zeros(X.shape[0], 0), X.new_zeros(0, X.shape[1]), 0.0, 0.0)
    if X.shape[0] > X.shape[1]:
        other = of_matrix(X.T, rank, error, seed)
        return LowRank(other.A.T, other.B.T, other.norm, other.error)
    if error is None and rank is not None and min(X.shape) > SMALL and 4 * (rank + OVERSAMPLED) < min(X.shape):
        return _projected(X, _leading(X, rank, norm, seed), norm)
    squares, vectors = torch.linalg.eigh(X @ X.T)
    values = squares.flip(0).clamp_min(0).sqrt()
    chosen = smallest_rank(values, error) if error is not None else len(values)
    U = vectors.flip(1)[:, : chosen if rank is None else min(chosen, rank)]
    return _projected(X, U, norm)


def _projected(X: Tensor, U: Tensor, norm: float) -> LowRank:
    """U^T X with its rows' lengths parted between the factors."""
    right = U.T @ X
    lengths = torch.linalg.vector_norm(right, dim=1).clamp_min(torch.finfo(X.dtype).tiny)
    roots = lengths.sqrt()
    left = norm * norm - float(right.square().sum())
    return LowRank(U * roots, right / roots[:, None], norm, math.sqrt(left) if left > LOST * norm * norm else 0.0)


def _leading(X: Tensor, rank: int, norm: float, seed: int) -> Tensor:
    """The first `rank` left singular vectors of X, nearly."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(X.shape[1], rank + OVERSAMPLED, generator=generator, dtype=X.dtype)
    Q = torch.linalg.qr(X @ start)[0]
    before, U = math.inf, Q
    for _ in range(MOST_ITERATIONS):
        Q = torch.linalg.qr(X @ (X.T @ Q))[0]
        U, values, _ = torch.linalg.svd(Q.T @ X, full_matrices=False)
        rest = math.sqrt(max(0.0, norm * norm - float(values[:rank].square().sum())))
        if before - rest <= CONVERGED * rest:
            break
        before = rest
    return Q @ U[:, :rank]


def of_factors(B: Tensor, A: Tensor, rank: int | None, error: float | None) -> LowRank:
    """The best approximation of B (m, R) times A (R, n) by a lower rank, computed without forming the product."""
    Q_b, R_b = torch.linalg.qr(B.double())
    Q_a, R_a = torch.linalg.qr(A.double().T)
    U, values, V = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    norm = float(torch.linalg.vector_norm(values))
    used = int((values > LOST * norm).sum())
    chosen = used if error is None else min(used, smallest_rank(values, error))
    chosen = chosen if rank is None else min(chosen, rank)
    roots = values[:chosen].sqrt()
    rest = float(torch.linalg.vector_norm(values[chosen:])) if chosen < used else 0.0
    return LowRank((Q_b @ U[:, :chosen]) * roots, roots[:, None] * (V[:chosen] @ Q_a.T), norm, rest)
