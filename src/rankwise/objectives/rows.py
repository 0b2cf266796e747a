"""How an objective encodes rows for training, and shows an encoded row as training sees it; and how a model that writes
text is asked: its prompts, what an answer depends on, and the logits of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load_tokenizer
from rankwise.config.models import ModelConfig
from rankwise.errors import TemplateError
from rankwise.rows.encoded.batches import Batch, collate
from rankwise.rows.text.chat_template import PROBE, ChatTemplate
from rankwise.rows.text.encode import Encoder, EncoderOf
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.outcome import Outcome, RowEncoding, Shown
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import ANSWERS, Learned


@dataclass(frozen=True)
class ObjectiveRows:
    """Rows of texts. A default is what language models have."""

    learned: Learned = ANSWERS
    """What is learned of rows, for the data report; nothing is counted yet."""
    encoder: EncoderOf = Encoder
    """Makes the encoder that turns rows of texts into tokens."""

    def encoding(self, model: LoadedModel) -> RowEncoding:
        """How rows are encoded for this model, by its tokenizer and the template that it has now."""
        return TextWriting(
            model.tokenizer, model.template, model.source.name, model.context_length, self.encoder, learned=self.learned
        )

    def encoding_alone(self, config: ModelConfig, callback: Callback, *, guessed: bool) -> RowEncoding:
        """How rows are encoded where the model is not loaded. `guessed`: the user did not name the model."""
        tokenizer, name, context = load_tokenizer(config, callback)
        template = ChatTemplate.of_model(tokenizer)
        return TextWriting(tokenizer, template, name, context, self.encoder, guessed=guessed, learned=self.learned)

    def preview(self, outcome: Outcome, row_encoding: TextWriting, encoder: Any) -> list[Shown]:
        """An encoded row of texts, as training sees it. `encoder` is that of the encoding."""
        where, rows = outcome.example.where, outcome.sequences
        if not rows:
            why = f"longer than {encoder.limit:,} tokens" if outcome.too_long else "no word is left after truncation"
            return [Shown(where, self.segments(outcome.example, None, row_encoding), outcome.lengths[0], 0, why)]
        return [
            Shown(where, self.segments(outcome.example, row, row_encoding), len(row.ids), row.loss_count)
            for row in rows
        ]

    def segments(self, example: Example, row: Tokens | None, row_encoding: TextWriting) -> list[tuple[str, bool]]:
        """The parts of a row, or of one that is left out, each with whether it is learned."""
        text = example.prompt_text if row is None else row_encoding.tokenizer.decode([int(token) for token in row.ids])
        return [(text, False), (f" -> {example.messages[1].content}", True)]


Messages = tuple[Message, ...]
Rendered = tuple[Messages, tuple[int, ...]]
"""A conversation with its ids, up to where the model is to answer."""


class Writer:
    """A default is what models with a chat template have."""

    def prompt(self, model: LoadedModel, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """A conversation up to where the model is to speak, and its ids."""
        text = model.template.text(messages, answer_next=True)
        return text, prompt_ids(text, model.tokenizer)

    def heard(self, messages: Sequence[Message]) -> list[Message]:
        """What the next answer depends on."""
        return list(messages)

    def reader(self, model: LoadedModel, system: Sequence[Message]) -> Callable[[Sequence[int]], str]:
        """Reads prompts as people do, without what the template writes before and behind a single question."""
        before = behind = ""
        with suppress(TemplateError):  # it knows other conversations than this one
            frame = model.template.text([*system, Message("user", PROBE)], answer_next=True)
            before, _, behind = frame.partition(PROBE)
        return lambda ids: model.tokenizer.decode(ids).removeprefix(before).removesuffix(behind)

    def rendered(self, model: LoadedModel, conversations: Sequence[Messages]) -> list[Rendered]:
        """The conversations that the template can render, with their token ids."""
        prompts = list[Rendered]()
        for messages in conversations:
            try:
                prompts.append((messages, tuple(self.prompt(model, messages)[1])))
            except TemplateError:  # it knows no system message, for example
                continue
        return prompts

    def answer_logits(self, model: LoadedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """(T, V) of the tokens of an answer."""
        ids = torch.tensor([[*prompt, *answer]], device=model.precision.device)
        return model.module(input_ids=ids).logits[0, len(prompt) - 1 : -1]

    def collated(self, rows: Sequence[Tokens]) -> Batch:
        """One padded batch, in the order of the rows."""
        return collate(rows)
