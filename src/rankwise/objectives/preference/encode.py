"""From pairs of answers to token sequences: each row holds the chosen conversation and behind it the rejected one.

    ids              chosen's tokens, then rejected's tokens
    loss_mask        the tokens of either answer
    token_type_ids   0 where the chosen conversation is, 1 where the rejected one is

Both are rendered and tokenized as any conversation is, and the tokens before the two answers must be the same. A pair
of which one conversation is too long is left out, or both are cut (`data.too_long: truncate`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder, shortened
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.tokenize import Tokens, sides_of
from rankwise.rows.text.tokenizer import HubTokenizer

REWRITTEN = (
    "the chat template rewrites earlier turns, so the answers of this conversation do not lie in one sequence. Write "
    "the earlier turns into the prompt, so that chosen and rejected have one answer each."
)


@dataclass(frozen=True)
class PairEncoder:
    template: ChatTemplate
    tokenizer: HubTokenizer
    config: DataConfig
    limit: int
    """Largest number of tokens of either conversation."""

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        spec = self.config.model_copy(update={"learned": "answers"})
        every = Encoder(self.template, self.tokenizer, spec, sys.maxsize)
        others = [replace(example, messages=example.rejected, rejected=()) for example in examples]
        encoded = every.encode([*examples, *others])
        sides = zip(examples, encoded[: len(examples)], encoded[len(examples) :], strict=True)
        return [self._paired(*side) for side in sides]

    def _paired(self, example: Example, chosen: Outcome, rejected: Outcome) -> Outcome:
        outcome = Outcome(example, problem=chosen.problem or rejected.problem)
        if outcome.problem is not None:
            return outcome
        if len(chosen.sequences) != 1 or len(rejected.sequences) != 1:
            outcome.problem = f"{example.where}: {REWRITTEN}"
            return outcome
        one, other = chosen.sequences[0], rejected.sequences[0]
        if prompt_of(one) != prompt_of(other):
            outcome.problem = f"{example.where}: the tokens before the chosen and before the rejected answer differ."
            return outcome
        outcome.lengths = [len(one.ids), len(other.ids)]
        if max(outcome.lengths) > self.limit and self.config.too_long != "truncate":
            outcome.too_long = 1
            return outcome
        outcome.truncated = int(max(outcome.lengths) > self.limit)
        self._add(outcome, shortened(one, self.limit), shortened(other, self.limit))
        return outcome

    def _add(self, outcome: Outcome, chosen: Tokens, rejected: Tokens) -> None:
        if not (chosen.loss_count and rejected.loss_count):
            outcome.without_loss_tokens = 1
        elif list(chosen.ids) == list(rejected.ids):
            outcome.tied = 1
        else:
            outcome.sequences = [pair_of(chosen, rejected, outcome.example.where)]


def pair_of(chosen: Tokens, rejected: Tokens, where: str | None = None) -> Tokens:
    """One row of two conversations."""
    return Tokens(
        np.concatenate([chosen.ids, rejected.ids]),
        np.concatenate([chosen.loss_mask, rejected.loss_mask]),
        as_asked=chosen.as_asked and rejected.as_asked,
        ended=chosen.ended and rejected.ended,
        method=chosen.method,
        token_type_ids=np.repeat([0, 1], [len(chosen.ids), len(rejected.ids)]),
        name=where,
    )


def conversation_of(row: Tokens) -> Tokens:
    """The row of a language model itself, or the chosen conversation of a pair."""
    return row if row.token_type_ids is None else sides_of(row)[0]


def prompt_of(tokens: Tokens) -> list[int]:
    """The ids before the first token of an answer."""
    mask = np.asarray(tokens.loss_mask, dtype=bool)
    return list(tokens.ids[: int(np.argmax(mask))])
