"""The next token of each row of a batch, each row drawn as its own request asks, whatever its company.

    p = softmax((logits + bias - presence * [written] - frequency * times written) / temperature)

and of the most likely tokens those whose probabilities add up to `top_p`. Each row draws from a generator of its own,
so an answer depends on its seed and not on the rows beside it. At temperature 0 the most likely token is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from rankwise.config.validation import GenerationConfig


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    top_p: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    """Added to the logit of a token."""
    likely: int = 0
    """How many of the most likely tokens are listed with each token."""
    listed: bool = False
    """Whether log-probabilities are wanted."""


@dataclass(frozen=True)
class Chosen:
    token: int
    logprob: float | None = None
    """By the model's own logits, before anything is added to them or divides them."""
    likely: tuple[tuple[int, float], ...] = ()


@dataclass
class Sampler:
    """`counts` counts the tokens of the answer so far."""

    config: Sampling
    generator: torch.Generator
    counts: Counter[int] = field(default_factory=Counter)

    @classmethod
    def seeded(cls, config: Sampling, seed: int) -> Sampler:
        return cls(config, torch.Generator().manual_seed(seed))

    def choose(self, logits: Tensor, allowed: Tensor | None = None) -> Chosen:
        """`logits` (V,) in float32 on the processor, of which only the `allowed` (V,) are looked at."""
        spec = self.config
        changed = self._changed(logits)
        changed = changed if allowed is None else changed.masked_fill(~allowed, -torch.inf)
        token = int(changed.argmax()) if spec.temperature == 0 else self._drawn(changed)
        self.counts[token] += 1
        if not spec.listed:
            return Chosen(token)
        logprobs = logits.log_softmax(-1)
        values, tokens = logprobs.topk(min(spec.likely, len(logits)))
        return Chosen(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))

    def _changed(self, logits: Tensor) -> Tensor:
        spec = self.config
        penalised = self.counts if spec.presence or spec.frequency else {}
        if not spec.bias and not penalised:
            return logits
        logits = logits.clone()
        for token, times in penalised.items():
            logits[token] -= spec.presence + spec.frequency * times
        for token, value in spec.bias.items():
            logits[token] += value
        return logits

    def _drawn(self, logits: Tensor) -> int:
        """The highest logit is made 0 first, so that no division by a small temperature overflows."""
        probabilities = ((logits - logits.max()) / max(self.config.temperature, LEAST)).softmax(-1)
        if self.config.top_p == 1:
            return int(torch.multinomial(probabilities, 1, generator=self.generator))
        ordered, tokens = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered[before >= max(self.config.top_p, LEAST)] = 0  # the first token is always left
        return int(tokens[torch.multinomial(ordered, 1, generator=self.generator)])


def chosen(logits: Tensor, samplers: Sequence[Sampler], allowed: Tensor | None = None) -> list[Chosen]:
    """`logits` and `allowed` (B, V), one sampler for each row."""
    if all(one.config == GREEDY for one in samplers):
        logits = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
        return [Chosen(token) for token in logits.argmax(-1).tolist()]
    rows = logits.float().cpu()
    each = [None] * len(rows) if allowed is None else allowed.cpu()
    return [sampler.choose(row, own) for sampler, row, own in zip(samplers, rows, each, strict=True)]


def drawn_together(
    config: GenerationConfig, logits: Tensor, rows: Sequence[object], allowed: Tensor | None
) -> list[Chosen]:
    """All rows (B, V) at once from torch's own generator, as transformers draws them."""
    logits = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
    scores = logits / config.temperature
    if config.top_p < 1:
        warp: Any = TopPLogitsWarper(config.top_p)
        scores = warp(None, scores)
    return [Chosen(token) for token in torch.multinomial(scores.softmax(-1), 1)[:, 0].tolist()]


GREEDY = Sampling()
LEAST = 1e-30
"""Float32 has no much smaller numbers."""
