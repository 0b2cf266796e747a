"""Losses of pairs of answers, from the log-probability of each target.

    dpo     margin = beta ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected)))
            loss   = -log sigmoid(margin)                                                   arXiv 2305.18290
    orpo    odds   = m / (1 - m), where log m is the mean log-probability of an answer's tokens
            loss   = mean -log p of the chosen targets - beta log sigmoid(log odds(chosen) - log odds(rejected))
            margin = beta (log m(chosen) - log m(rejected))                                 arXiv 2403.07691

p0 is the model before training. A margin above 0 means that the chosen answer is preferred. The mean of orpo's first
term is over all chosen targets of the step together, as in TRL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.config.preference import PairLoss
from rankwise.data.pairs import Pairs

LEAST = 1e-12
"""By how much the mean probability of a token stays below 1, in nats, so that its odds are finite."""


@dataclass(frozen=True)
class PairLosses:
    """Of P pairs, in the dtype of their reference."""

    losses: Tensor
    """(P,) with gradients, in nats."""
    margins: Tensor
    """(P,) without gradients."""


def dpo(logs: Tensor, pairs: Pairs, beta: float) -> PairLosses:
    """`logs` (N,) are log-probabilities of the targets."""
    ratios = pairs.sums(logs) - pairs.reference
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    return PairLosses(-F.logsigmoid(margins), margins.detach())


def orpo(logs: Tensor, pairs: Pairs, beta: float) -> PairLosses:
    means = pairs.sums(logs) / pairs.sums(torch.ones_like(logs))
    odds = means - log_of_rest(means)
    learned = -pairs.sums(logs, prompts=True)[:, 0] / pairs.chosen_tokens
    losses = learned - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
    return PairLosses(losses, beta * (means[:, 0] - means[:, 1]).detach())


def log_of_rest(logs: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012)."""
    logs = logs.clamp(max=-LEAST)
    near = logs > -math.log(2)
    small = torch.log(-torch.expm1(torch.where(near, logs, -1.0)))
    return torch.where(near, small, torch.log1p(-torch.exp(torch.where(near, -1.0, logs))))


PAIR_LOSSES: dict[PairLoss, Callable[[Tensor, Pairs, float], PairLosses]] = {"dpo": dpo, "orpo": orpo}
