"""Preference tuning: raise the probability of a chosen answer over that of a rejected one to the same prompt.

The model is an ordinary language model and stays one: only what its loss compares is different (PAIR_LOSSES). A row
is a pair of conversations, and a loss is a mean over pairs.

Losses of pairs of answers, from the log-probability of each target.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.kind import CAUSAL_LM
from rankwise.config.classification import PairLoss as PairLossName
from rankwise.config.classification import PreferenceConfig
from rankwise.objectives.causal_lm import CHATTING, CausalLoss, random_sides
from rankwise.objectives.objective import WRITES_TEXT, Facts, Objective, Score
from rankwise.objectives.preference.batches import flat_pairs, padded_pairs
from rankwise.objectives.preference.encode import PairEncoder, pair_of
from rankwise.objectives.rows import ObjectiveRows
from rankwise.rows.encoded.batches import Batch, Pairs
from rankwise.rows.text.outcome import Outcome, Shown
from rankwise.rows.text.tokenize import Tokens, sides_of
from rankwise.rows.writing import TextWriting
from rankwise.runs.row_facts import PairFacts

LEAST = 1e-12
"""By how much the mean probability of a token stays below 1, in nats, so that its odds are finite."""


@dataclass(frozen=True)
class PairLosses:
    """The losses of P pairs, in the dtype of their reference."""

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


PAIR_LOSSES: dict[PairLossName, Callable[[Tensor, Pairs, float], PairLosses]] = {"dpo": dpo, "orpo": orpo}


NAME = "preference"


@dataclass(frozen=True)
class PairLoss(CausalLoss):
    config: PreferenceConfig
    prompts: bool = False
    """Whether the likelihood of orpo also covers the prompts."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model before training."""
        return self.config.loss == "dpo"

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return padded_pairs(rows, max_tokens, prompts=self.prompts)

    def flat(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Batches of pairs without padding, for the fused backend."""
        return flat_pairs(rows, max_tokens, prompts=self.prompts)

    def losses(self, logs: Tensor, batch: Batch) -> PairLosses:
        """From the log-probabilities (N,) of the batch's targets."""
        assert batch.pairs is not None, "the rows are pairs"
        return PAIR_LOSSES[self.config.loss](logs, batch.pairs, self.config.beta)

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        return self.losses(log_probabilities(self.predict(module, batch), batch), batch).losses.sum()

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        return [pair_of(*sides) for sides in random_sides(module, lengths, generator)]


class PairRows(ObjectiveRows):
    def preview(self, outcome: Outcome, row_encoding: TextWriting, encoder: Any) -> list[Shown]:
        """Both conversations."""
        example = outcome.example
        names = [f"{example.where} {name}" for name in ("chosen", "rejected")]
        if not outcome.sequences:
            why = (
                f"one of both is longer than {encoder.limit:,} tokens"
                if outcome.too_long
                else "nothing is left to compare"
            )
            texts = (replace(example, rejected=()), replace(example, messages=example.rejected, rejected=()))
            sides = zip(names, texts, outcome.lengths, strict=True)
            return [Shown(name, [(side.full_text, False)], tokens, 0, why) for name, side, tokens in sides]
        sides = zip(names, sides_of(outcome.sequences[0]), strict=True)
        return [Shown(name, row_encoding.segments(side), len(side.ids), side.loss_count) for name, side in sides]


WORDS = replace(
    CHATTING,
    cannot={
        **WRITES_TEXT,
        "measured at strengths": "{model} was trained on preference pairs, and strengths are compared by the loss "
        "of answers. Measure it with rankwise evaluate.",
        "advised on": "the objective is preference, and advise compares answers alone. Use rankwise evaluate.",
    },
)


def preference(facts: Facts) -> Objective:
    config = facts.preference
    learned = PairFacts(
        loss=config.loss, beta=config.beta, prompts=facts.prompts, rows=0, duplicates=0, contradictions=0, ties=0
    )
    return Objective(
        NAME, "pairs", facts, CAUSAL_LM,
        words=WORDS, rows=PairRows(learned, PairEncoder), loss=PairLoss(config, facts.prompts),
        score=Score(chooses_tokens=False),
    )  # fmt: skip


def pair_loss_of(objective: Objective) -> PairLoss:
    """The loss of an objective of pairs."""
    assert isinstance(objective.loss, PairLoss), "its rows are pairs"
    return objective.loss


def log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """(N,) of the batch's targets, in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(exact, batch.targets[batch.loss_mask], reduction="none")
