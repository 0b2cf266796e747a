"""What rows of texts are encoded and counted with, and what is counted without a model; preparing.py does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.config.recipe import recipe_named
from rankwise.constraints.constraint import AnswerForms, answers_in
from rankwise.errors import DataError
from rankwise.rows.images.decode import decode, record_of
from rankwise.rows.preparation import Encoding, EncodingFacts, Prepared, prepared_of
from rankwise.rows.report.report import Tally
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder, EncoderOf
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome, RowEncoder
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback
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

    def tally(self) -> Tally:
        tokenizer = self.tokenizer
        start = tokenizer.encode(tokenizer.start) if tokenizer.start else []
        return Tally(
            known=frozenset(map(str, tokenizer.hub.get_added_vocab())),
            start_id=start[0] if len(start) == 1 else tokenizer.hub.bos_token_id,
            guards=self.template,
            guessed=self.guessed,
        )

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
        return EncodingFacts(self.learned, self.template.facts, reads=self.learned.reads, answers=self.answers)

    def counted(self, prepared: Prepared) -> Prepared:
        """With how often new tokens occur."""
        new = self.tokenizer.new
        if not new.ids and not new.existing:
            return prepared
        numbers = np.fromiter(new.ids.values(), np.int64)
        times = np.zeros(len(numbers), np.int64)
        for row in prepared.trained_rows:
            times += (np.asarray(row.ids)[:, None] == numbers).sum(0)
        counts = dict(zip(new.ids, times.tolist(), strict=True))
        facts, report = NewTokenFacts(counts=counts, existing=tuple(new.existing)), prepared.data_report
        changes = {"new_tokens": facts, "warnings": (*report.warnings, *facts.warnings)}
        return replace(prepared, data_report=report.model_copy(update=changes))

    @property
    def identity(self) -> str:
        learned = self.learned.model_dump_json()
        return f"{self.tokenizer.identity} {self.template.identity} {self.guessed} {learned}"


def count_only(config: DataConfig, callback: Callback) -> DataReport:
    """What can be said of rows without any tokenizer."""
    work = Encoding(config, None, Tally(), callback, None, EncodingFacts(answers=answers_in(config)), look=looked_at)
    return prepared_of(work, work.read(None)).data_report


def looked_at(example: Example) -> Outcome:
    """Decode the image of a row without a model. A row of text stays as it is."""
    outcome = Outcome(example)
    if example.image is not None:
        try:
            outcome.image = record_of(decode(example.image, example.where))
        except DataError as error:
            outcome.problem = str(error)
    return outcome
