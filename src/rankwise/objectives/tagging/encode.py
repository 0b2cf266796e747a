"""Encode a text whose words have tags: the first token of each word has the word's tag, and no other token a target.

    text        Anna   works   in   Oslo
    tokens      [CLS] anna work ##s in oslo [SEP]
    learned           O    O        O  ...

That is the usual convention, and a word's prediction is that of its first token. A word that has no first token of its
own, because one token holds the beginnings of two words or the tokenizer drops the word, is not learned. Control tokens
that somebody typed stay plain text. A text that is too long is left out, or with `truncate` cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.tagged import Range
from rankwise.rows.text.targets import RowTargets, tagged_in
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.row_facts import TargetFacts

Text = tuple[str, tuple[Range, ...]]
"""A text, and where each of its words lies in it."""


@dataclass(frozen=True)
class EncodedWords:
    tokens: Tokens
    """With the first token of each learned word in the loss mask, and without tags."""
    words: tuple[int, ...]
    """The number of the word that each of these tokens begins, in their order."""
    cut: int
    """Words behind the end of a text that was cut."""


@dataclass(frozen=True)
class TagEncoder:
    tokenizer: HubTokenizer
    spec: DataConfig
    limit: int
    targets: TargetFacts

    @cached_property
    def _targets(self) -> RowTargets:
        return RowTargets(self.targets)

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, lambda one: (text_of(one), self._targets.of_words(one)))
        encoded = encode_words(self.tokenizer, [text for _, (text, _) in usable])
        for (outcome, (text, tags)), words in zip(usable, encoded, strict=True):
            self._add(outcome, text, words, tags)
        return outcomes

    def _add(self, outcome: Outcome, text: Text, encoded: EncodedWords, tags: Sequence[int]) -> None:
        outcome.lengths = [len(encoded.tokens.ids)]
        if len(encoded.tokens.ids) > self.limit:
            if self.spec.too_long != "truncate":
                outcome.too_long = 1
                return
            (encoded,) = encode_words(self.tokenizer, [text], self.limit)
            outcome.truncated, outcome.cut_words = 1, encoded.cut
        outcome.unlearned_words = len(tags) - len(encoded.words) - encoded.cut
        if not encoded.words:
            outcome.without_loss_tokens = 1
            return
        learned = iter(encoded.words)
        classes = tuple(tags[next(learned)] if first else 0 for first in encoded.tokens.loss_mask)
        outcome.sequences = [replace(encoded.tokens, tags=classes, name=outcome.example.where)]


def text_of(example: Example) -> Text:
    return example.messages[0].content, tagged_in(example).words


def encode_words(tokenizer: HubTokenizer, texts: Sequence[Text], limit: int | None = None) -> list[EncodedWords]:
    """Texts without tags. With a `limit`, longer ones are cut to it."""
    encodings = tokenizer.encodings([(text, "") for text, _ in texts], limit)
    typed = tokenizer.reads_types
    return [_encoded(encoding, words, typed=typed) for encoding, (_, words) in zip(encodings, texts, strict=True)]


def _encoded(encoding: Any, words: Sequence[Range], *, typed: bool) -> EncodedWords:
    ends = [
        end for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special
    ]
    last, begun = max(ends, default=0), dict[int, int]()
    for number, (start, end) in enumerate(words):
        token = next((at for place in range(start, end) if (at := encoding.char_to_token(place)) is not None), None)
        if token is not None:
            begun.setdefault(token, number)
    mask = tuple(at in begun for at in range(len(encoding.ids)))
    tokens = Tokens(encoding.ids, mask, token_type_ids=encoding.type_ids if typed else None, tags=(0,) * len(mask))
    cut = sum(start >= last for start, _ in words) if encoding.overflowing else 0
    return EncodedWords(tokens, tuple(begun[at] for at in sorted(begun)), cut)
