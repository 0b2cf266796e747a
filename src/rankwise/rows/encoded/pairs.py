"""Pairs of answers in a batch: the sums of what each answer's tokens came to.

A batch of P pairs holds 2P sequences, chosen and rejected in turn. `sums` maps one number for each target of the batch
to (P, 2). Targets that belong to no answer are those of a chosen conversation's prompt, where these are learned too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    counts: tuple[int, ...]
    """Targets of each of the 2P sequences, one behind the other."""
    answers: Tensor
    """(N,) whether it is a token of the answer; False for a token of the prompt."""
    reference: Tensor
    """(P, 2) log-probabilities of both answers before training, in float64 where the device has it; zeros where nothing
    was computed."""
    chosen_tokens: float
    """Targets of the chosen conversations in the whole step, by the number of its pairs."""
    positions: tuple[int, ...]
    """Of these pairs among the rows that were laid out together."""

    def sums(self, values: Tensor, *, prompts: bool = False) -> Tensor:
        """(N,) to (P, 2), in the dtype of the reference: over the targets of answers, or with `prompts` over all."""
        exact = values.to(self.reference.dtype)
        exact = exact if prompts else exact * self.answers
        return torch.stack([part.sum() for part in exact.split(self.counts)]).view(-1, 2)

    def to(self, device: torch.device | str) -> Pairs:
        reference = self.reference.float() if torch.device(device).type == "mps" else self.reference
        return replace(self, answers=self.answers.to(device), reference=reference.to(device))
