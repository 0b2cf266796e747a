"""Encode a question with its choices: one row holds every choice as an answer to the question, one behind the other.

    ids              the question with the first choice, then the question with the second one, …
    loss_mask        the tokens of the choices, with the token that ends an answer
    token_type_ids   0 where the first conversation is, 1 where the second is, …
    target           the number of the right choice, from 0 on

Each is rendered and tokenized as any conversation is, and the tokens before the choices must be the same. A row is left
out where one of its conversations is too long.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.objectives.preference.encode import prompt_of
from rankwise.rows.forms.formats import Choices
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer


@dataclass(frozen=True)
class ChoiceEncoder:
    template: ChatTemplate
    tokenizer: HubTokenizer
    config: DataConfig
    limit: int
    """Tokens of a question with one of its choices, at most."""
    most: int
    """Choices of a question, at most."""
    answered: bool = True
    """Whether each row needs its right choice; else none is looked at."""

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, self._choices_in)
        every = Encoder(self.template, self.tokenizer, self.config, sys.maxsize)
        encoded = iter(every.encode([
            Example(turns, choices.where) for _, choices in usable for turns in choices.conversations
        ]))  # fmt: skip
        for outcome, choices in usable:
            self._add(outcome, choices.answer, [next(encoded) for _ in choices.choices])
        return outcomes

    def _choices_in(self, example: Example) -> Choices:
        where = example.where
        if not isinstance(example, Choices):
            raise DataError(f"{where}: has no choices; write them as a list of texts beside the question.")
        if len(example.choices) > self.most:
            raise DataError(f"{where}: has {len(example.choices)} choices, and rows of training at most {self.most}.")
        if self.answered and example.answer is None:
            raise DataError(f"{where}: has no answer; write the number of the right choice, from 0 on, or its text.")
        return example

    def _add(self, outcome: Outcome, answer: int | None, sides: Sequence[Outcome]) -> None:
        where = outcome.example.where
        outcome.problem = next((side.problem for side in sides if side.problem is not None), None)
        if outcome.problem is not None:
            return
        rows = [side.sequences[0] for side in sides]
        if any(prompt_of(row) != prompt_of(rows[0]) for row in rows):
            outcome.problem = f"{where}: the tokens before the choices differ."
            return
        outcome.lengths = [len(row.ids) for row in rows]
        outcome.too_long = int(max(outcome.lengths) > self.limit)
        if not outcome.too_long:
            outcome.sequences = [replace(row_of(rows), target=answer if self.answered else None, name=where)]


def row_of(sides: Sequence[Tokens]) -> Tokens:
    """One row of the conversations with each choice."""
    return Tokens(
        np.concatenate([side.ids for side in sides]),
        np.concatenate([side.loss_mask for side in sides]),
        as_asked=all(side.as_asked for side in sides),
        method=sides[0].method,
        token_type_ids=np.repeat(np.arange(len(sides)), [len(side.ids) for side in sides]),
        target=0.0,
    )
