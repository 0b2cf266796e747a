"""Encode a text, or a pair of texts, with the row's class or number as its only target.

A text becomes what the tokenizer makes of it, with the special tokens that its model expects: [CLS] text [SEP] pair
[SEP] of BERT, and two sentences joined by a blank line where a tokenizer has no separator. Control tokens that somebody
typed stay plain text. A row that is too long is left out, or with `truncate` the longer of its texts is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rankwise.config.data import DataConfig
from rankwise.rows.text.example import BREAK, Example
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.targets import RowTargets, texts_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.row_facts import TargetFacts

Target = float | Sequence[float]


@dataclass(frozen=True)
class TextEncoder:
    tokenizer: HubTokenizer
    spec: DataConfig
    limit: int
    targets: TargetFacts

    @cached_property
    def _targets(self) -> RowTargets:
        return RowTargets(self.targets)

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, lambda one: (texts_of(one), self._targets.target_of(one)))
        encoded = encode_texts(self.tokenizer, [texts for _, (texts, _) in usable])
        for (outcome, (texts, target)), tokens in zip(usable, encoded, strict=True):
            self._add(outcome, texts, tokens, target)
        return outcomes

    def _add(self, outcome: Outcome, texts: tuple[str, str], tokens: Tokens, target: Target) -> None:
        outcome.lengths = [len(tokens.ids)]
        if len(tokens.ids) > self.limit:
            if self.spec.too_long != "truncate":
                outcome.too_long = 1
                return
            (tokens,) = encode_texts(self.tokenizer, [texts], self.limit)
            outcome.truncated = 1
        outcome.sequences = [replace(tokens, target=target, name=outcome.example.where)]


def encode_texts(tokenizer: HubTokenizer, texts: Sequence[tuple[str, str]], limit: int | None = None) -> list[Tokens]:
    """Texts without targets. With a `limit`, longer ones are cut to it."""
    encodings = tokenizer.encode_texts([(_without_breaks(text), _without_breaks(pair)) for text, pair in texts], limit)
    return [Tokens(ids, (False,) * len(ids), token_type_ids=types) for ids, types in encodings]


def _without_breaks(text: str) -> str:
    return text.replace(BREAK, "")
