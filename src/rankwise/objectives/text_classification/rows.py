"""Texts with their targets into tokens, and texts that are only to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.config.base import shown
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.objectives.classifier import RowInputs
from rankwise.objectives.predictions import Longest
from rankwise.rows.forms.turns import text_of
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.targets import RowTargets, texts_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.row_facts import TargetFacts

Target = float | Sequence[float]


@dataclass(frozen=True)
class TextEncoder:
    tokenizer: HubTokenizer
    config: DataConfig
    limit: int
    targets: TargetFacts

    @cached_property
    def row_targets(self) -> RowTargets:
        return RowTargets(self.targets)

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, lambda item: (texts_of(item), self.row_targets.target_of(item)))
        encoded = encode_texts(self.tokenizer, [texts for _, (texts, _) in usable])
        for (outcome, (texts, target)), tokens in zip(usable, encoded, strict=True):
            self._add(outcome, texts, tokens, target)
        return outcomes

    def _add(self, outcome: Outcome, texts: tuple[str, str], tokens: Tokens, target: Target) -> None:
        outcome.lengths = [len(tokens.ids)]
        if len(tokens.ids) > self.limit:
            if self.config.too_long != "truncate":
                outcome.too_long = 1
                return
            (tokens,) = encode_texts(self.tokenizer, [texts], self.limit)
            outcome.truncated = 1
        outcome.sequences = [replace(tokens, target=target, name=outcome.example.where)]


def encode_texts(tokenizer: HubTokenizer, texts: Sequence[tuple[str, str]], limit: int | None = None) -> list[Tokens]:
    """Texts without targets. With a `limit`, longer ones are cut to it."""
    encodings = tokenizer.encode_texts(
        [(text.replace(BREAK, ""), pair.replace(BREAK, "")) for text, pair in texts], limit
    )
    return [Tokens(ids, (False,) * len(ids), token_type_ids=types) for ids, types in encodings]


class TextInputs(RowInputs):
    def example_of(self, item: Any, where: str) -> Example:
        """A text, or two."""
        if isinstance(item, list | tuple) and len(item) == 2:
            first, second = item
            pair = text_of(second, where, "second text", may_be_empty=True)
            return Example((Message("user", text_of(first, where, "first text"), pair),), where)
        if not isinstance(item, str):
            raise DataError(f"{where}: is {shown(item)}; this classifier reads texts, one or a list of two.")
        return Example((Message("user", text_of(item, where, "text")),), where)

    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        outcomes, usable = read_each(examples, texts_of)
        rows = encode_texts(model.tokenizer, [texts for _, texts in usable], longest.cut)
        for (outcome, _), row in zip(usable, rows, strict=True):
            longest.add(outcome, row)
        return outcomes
