"""Tags of words: predict the tag of each word of a text, from the word's first token.

    loss = sum over words of -w(tag) log softmax(logits of the word's first token)[tag]     in nats

A decoder has seen the words before a word and not those behind it. The first token of each word has the word's tag, and
no other token a target.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.config.base import shown
from rankwise.errors import DataError
from rankwise.objectives.classifier import Classifier, RowInputs
from rankwise.objectives.objective import Facts, Objective, Score, head_words
from rankwise.objectives.predictions import Done, Longest, Numbers
from rankwise.objectives.rows import ObjectiveRows
from rankwise.objectives.text_classification import LOADING as OF_TEXTS
from rankwise.objectives.text_classification import targets_in, text_kind
from rankwise.objectives.text_classification.head import TextHead
from rankwise.objectives.text_classification.loss import TextLoss, random_ids
from rankwise.objectives.text_classification.rows import TextEncoder
from rankwise.rows.encoded.batches import IGNORED
from rankwise.rows.forms import turns
from rankwise.rows.forms.tagged_rows import TAGGED_FORMATS, untagged
from rankwise.rows.text.example import BEGIN, INSIDE, OUTSIDE, Example, Range, label_in, spans_of
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.targets import tagged_in
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.row_facts import TargetFacts

NAME = "token-classification"
LOADING = OF_TEXTS.replace("ForSequenceClassification", "ForTokenClassification").replace(
    "padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id\n"
    "base.config.pad_token_id = padding  # a decoder's head reads the last token that is none of these\n", ""
).replace("The outputs are", "The outputs of a word are those of its first token,")  # fmt: skip


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


class TagEncoder(TextEncoder):
    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, lambda item: (text_of(item), self.row_targets.of_words(item)))
        encoded = encode_words(self.tokenizer, [text for _, (text, _) in usable])
        for (outcome, (text, tags)), encoded_words in zip(usable, encoded, strict=True):
            self._add_words(outcome, text, encoded_words, tags)
        return outcomes

    def _add_words(self, outcome: Outcome, text: Text, encoded: EncodedWords, tags: Sequence[int]) -> None:
        outcome.lengths = [len(encoded.tokens.ids)]
        if len(encoded.tokens.ids) > self.limit:
            if self.config.too_long != "truncate":
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


class TagInputs(RowInputs):
    form = ", ".join(TAGGED_FORMATS)  # either format of words with tags

    def columns(self, column: str) -> list[str]:
        return [tags_column(column)]

    def example_of(self, item: Any, where: str) -> Example:
        """A text, or its words."""
        if isinstance(item, list | tuple) and item:
            return untagged(
                [turns.text_of(word, where, f"word {number}") for number, word in enumerate(item, 1)], where
            )
        if not isinstance(item, str):
            raise DataError(f"{where}: is {shown(item)}; this model reads texts, or lists of words.")
        return untagged(turns.text_of(item, where, "text"), where)

    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        outcomes, usable = read_each(examples, text_of)
        rows = encode_words(model.tokenizer, [text for _, text in usable], longest.cut)
        for (outcome, _), row in zip(usable, rows, strict=True):
            longest.add(outcome, row.tokens)
            outcome.learned_words, outcome.cut_words = row.words, row.cut
        return outcomes

    def prediction(self, outcome: Outcome, outputs: Numbers) -> TaggedText:
        return tagged_text(self.targets, outcome, outputs)


class TagRows(ObjectiveRows):
    def segments(self, example: Example, row: Tokens | None, row_encoding: TextWriting) -> list[tuple[str, bool]]:
        """The first token of each word, and behind it the tag that it is to have."""
        if row is None or row.tags is None:
            return [(example.prompt_text, False)]
        tokens = [row_encoding.tokenizer.decode([int(token)]) for token in row.ids]
        return [
            (f"{text} -> {self.learned.names[tag]}" if learned else text, bool(learned))
            for text, learned, tag in zip(tokens, row.loss_mask, row.tags, strict=True)
        ]


class TagClassifier(Classifier):
    def outputs_for(self, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None) -> list[Numbers]:
        """For each row (W, C): the probability of each of C tags for each of its W learned words."""
        found = [np.empty((0, 0))] * len(rows)
        for places, batch, outputs in self.in_batches(module, rows, done):
            shares, words = outputs.softmax(-1).cpu().numpy(), batch.loss_mask.sum(1).tolist()
            for place, part in zip(places, np.split(shares, np.cumsum(words)[:-1]), strict=True):
                found[place] = part
        return found


class TagLoss(TextLoss):
    def values(self, rows: Sequence[Tokens], ids: Tensor) -> Tensor:
        """(B, T) numbers of tags, IGNORED at tokens that begin no learned word and behind the end of a row."""
        targets = np.full(ids.shape, IGNORED)
        for at, row in enumerate(rows):
            assert row.tags is not None, "every row has tags"
            targets[at, : len(row.ids)] = np.where(np.asarray(row.loss_mask, bool), np.asarray(row.tags), IGNORED)
        return torch.from_numpy(targets)

    def learned(self, values: Tensor, mask: Tensor) -> Tensor:
        """Select from all tokens (B, T, ...) the ones that begin a learned word (N, ...)."""
        return values[mask]

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        every = random_ids(module, lengths, generator)
        return [Tokens(ids, (True,) * len(ids), tags=(0,) * len(ids)) for ids in every]


class TagHead(TextHead):
    def question(self, outcome: Outcome) -> dict[str, Any]:
        """With the number of each word's first token."""
        return super().question(outcome) | {"first": np.flatnonzero(outcome.sequences[0].loss_mask).tolist()}


def tagging(facts: Facts) -> Objective:
    targets = targets_in(facts)
    loss, inputs = TagLoss(targets), TagInputs(targets)
    return Objective(
        NAME, "classes", facts, text_kind("AutoModelForTokenClassification", "a model that classifies tokens", facts),
        words=head_words(
            targets, loading=LOADING, pipeline_tag=NAME, shown_as="tags", names="tags", activity="Tagging",
            advises="language models and classifiers of texts, and these rows have tags of words.",
        ),
        rows=TagRows(targets, lambda _, tokenizer, config, limit: TagEncoder(tokenizer, config, limit, targets)),
        loss=loss, score=Score.of_classes(targets),
        classifier=TagClassifier(inputs, loss), head=TagHead(targets, inputs),
    )  # fmt: skip


@dataclass(frozen=True)
class TaggedText:
    text: str
    spans: list[dict[str, Any]]
    """With start, end, label, text and probability, which is the mean over the span's words of the probability of the
    predicted tag."""
    tags: list[str]
    """One for each word."""
    is_split: bool
    """Whether the words were given one by one."""

    def as_columns(self, column: str) -> dict[str, Any]:
        """The tags are beside the spans of words that were given."""
        return {column: self.spans, tags_column(column): self.tags} if self.is_split else {column: self.spans}

    def as_values(self) -> dict[str, Any]:
        return {"spans": self.spans, "tags": self.tags}

    def as_shown(self) -> dict[str, Any]:
        return {"spans": self.spans, "whole": self.text}


def tags_column(column: str) -> str:
    """The column of tags beside a column of spans."""
    return f"{column}_tags"


def tagged_text(targets: TargetFacts, outcome: Outcome, shares: Numbers) -> TaggedText:
    """`shares` (W, C) are the probabilities of the learned words. A word that is not learned has the tag of the word
    before it, whose first token it shares; and a word that was cut has none."""
    whole, words = text_of(outcome.example)
    tags, sure = [""] * len(words), np.full(len(words), np.nan)
    for number, row in zip(outcome.learned_words, shares, strict=True):
        tags[number], sure[number] = targets.classes[int(row.argmax())], row.max()
    for number in range(len(words)):
        cut = number >= len(words) - outcome.cut_words
        tags[number] = tags[number] or (OUTSIDE if cut or not number else _continued(tags[number - 1]))
    spans = [
        {
            "start": words[span.first][0], "end": words[span.stop - 1][1], "label": span.label,
            "text": whole[words[span.first][0] : words[span.stop - 1][1]],
            "probability": round(float(np.nanmean(sure[span.first : span.stop])), 6),
        }
        for span in spans_of(tags)
    ]  # fmt: skip
    return TaggedText(whole, spans, tags, tagged_in(outcome.example).is_split)


def _continued(tag: str) -> str:
    label = label_in(tag)
    return f"{INSIDE}{label}" if tag.startswith((BEGIN, INSIDE)) else tag
