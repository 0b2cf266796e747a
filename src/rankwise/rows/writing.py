"""How rows of texts are encoded and counted (preparing.py does it)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.config.recipe import recipe_named
from rankwise.constraints.constraint import AnswerForms, answers_in
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder, EncoderOf
from rankwise.rows.text.outcome import EncodingFacts, RowEncoder
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.row_facts import ANSWERS, Learned, NewTokenFacts


@dataclass(frozen=True)
class TextWriting:
    """Texts by a tokenizer and a chat template. `context` is the model's longest text."""

    tokenizer: HubTokenizer
    template: ChatTemplate
    name: str
    context: int | None
    encoder_of: EncoderOf = Encoder
    """An objective's way to encode rows."""
    guessed: bool = False
    """Nobody named this model; it was here."""
    learned: Learned = ANSWERS
    answers: Callable[[], AnswerForms] | None = None
    """Makes the check of answers, where they are held to anything."""

    def by(self, config: DataConfig) -> TextWriting:
        """With the template of the recipe, where there is one, and asked to reason where rows have reasoning."""
        own = self.template
        if config.recipe is not None:
            own = ChatTemplate.of_recipe(self.tokenizer, recipe_named(config.recipe))
        return replace(self, template=own.with_reasoning(config.reasoning), answers=answers_in(config))

    def encoder(self, config: DataConfig) -> RowEncoder:
        limit = min(config.max_length, self.context or config.max_length)
        return self.encoder_of(self.template, self.tokenizer, config, limit)

    def segments(self, row: Tokens) -> list[tuple[str, bool]]:
        """The text of an encoded row in parts, each with whether it is learned."""
        runs: list[tuple[list[int], bool]] = []
        for token, learned in zip(row.ids, row.loss_mask, strict=True):
            if not runs or runs[-1][1] != learned:
                runs.append(([], learned))
            runs[-1][0].append(token)
        return [(self.tokenizer.decode([int(one) for one in ids]), bool(learned)) for ids, learned in runs]

    @property
    def facts(self) -> EncodingFacts:
        tokenizer = self.tokenizer
        start = tokenizer.encode(tokenizer.start) if tokenizer.start else []
        return EncodingFacts(
            self.learned, self.template.facts, reads=self.learned.reads, answers=self.answers, guessed=self.guessed,
            special=frozenset(map(str, tokenizer.hub.get_added_vocab())), control=tokenizer.special.begins,
            start_id=start[0] if len(start) == 1 else tokenizer.hub.bos_token_id,
        )  # fmt: skip

    def new_tokens(self, rows: Iterable[Tokens]) -> NewTokenFacts | None:
        new = self.tokenizer.new
        if not new.ids and not new.existing:
            return None
        numbers = np.fromiter(new.ids.values(), np.int64)
        times = np.zeros(len(numbers), np.int64)
        for row in rows:
            times += (np.asarray(row.ids)[:, None] == numbers).sum(0)
        counts = dict(zip(new.ids, times.tolist(), strict=True))
        return NewTokenFacts(counts=counts, existing=tuple(new.existing))

    @property
    def identity(self) -> str:
        learned = self.learned.model_dump_json()
        return f"{self.tokenizer.identity} {self.template.identity} {self.guessed} {learned}"
