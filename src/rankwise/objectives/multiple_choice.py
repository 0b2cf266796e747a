"""Multiple choice: a decoder scores each choice as the answer to its question, and the right one is to score highest.

    score(choice) = sum over its tokens t of log p(token t | question, tokens before t)     in nats, in float32 or more
    loss          = sum over rows of -log softmax(scores)[right choice]                     in nats

The score is the log-probability of the whole answer, with the token that ends it. It is not divided by the length: what
a training compares, it also learns, so that long choices win where they are right. (Tasks of `rankwise evaluate` with
choices, which measure models that never learned to choose, divide by characters.)

The model is an ordinary language model and stays one. The classes are the places of the choices, so that the data
report shows whether the right choice often stands at the same one, and a run whether the model has learned only that.

One row holds every choice as an answer to the question, one behind the other:

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
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from rankwise.base.kind import CAUSAL_LM
from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.forward.reference import SupervisedLogits
from rankwise.objectives.causal_lm import CHATTING, random_sides
from rankwise.objectives.classifier import Classifier, RowInputs
from rankwise.objectives.loss import ClassLoss, values_of
from rankwise.objectives.objective import WRITES_TEXT, Facts, Objective, Score, one_target
from rankwise.objectives.predictions import Longest, Numbers
from rankwise.objectives.preference import log_probabilities
from rankwise.objectives.preference.encode import prompt_of
from rankwise.objectives.rows import ObjectiveRows
from rankwise.rows.encoded.batches import IGNORED, Batch, collate, padded_length
from rankwise.rows.forms.formats import Choices, choice_example
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome, Shown, read_each
from rankwise.rows.text.tokenize import Tokens, sides_of
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.row_facts import TargetFacts


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


NAME = "multiple-choice"
CANNOT = {
    **WRITES_TEXT,
    "computed by kernels": "the fused kernels do not compare the choices of a question yet",
    "advised on": "advise compares answers and labels, and not choices yet. Use rankwise evaluate.",
    "measured at strengths": "{model} was trained on choices, and strengths are compared by the loss of answers. "
    "Measure it with rankwise evaluate.",
}


class ChoiceFacts(TargetFacts):
    """The places of the right choices. Their texts may lie in the question, or be the same in many rows."""

    uncounted = ()
    accepts = "answer-in-prompt", "prompt-as-answer", "one-answer", "label-of-each-row"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"choices"})

    @property
    def names(self) -> tuple[str, ...]:
        """Labels are texts of choices, and no names of classes."""
        return ()


@dataclass(frozen=True)
class ChosenAnswer:
    choices: tuple[str, ...]
    shares: tuple[float, ...]
    """The probability of each choice."""

    @property
    def number(self) -> int:
        return int(np.argmax(self.shares))

    def as_columns(self, column: str) -> dict[str, Any]:
        shares = [round(share, 6) for share in self.shares]
        values = self.choices[self.number], self.number, shares
        return dict(zip((column, *columns_beside(column)), values, strict=True))

    def as_values(self) -> dict[str, Any]:
        shares = dict(zip(self.choices, self.shares, strict=True))
        return {"label": self.choices[self.number], "number": self.number, "probabilities": shares}

    def as_shown(self) -> dict[str, Any]:
        shares = sorted(zip(self.choices, self.shares, strict=True), key=lambda item: -item[1])
        return {"labels": shares, "value": None, "chosen": self.choices[self.number]}


def columns_beside(column: str) -> list[str]:
    return [f"{column}_number", f"{column}_probabilities"]


class ChoiceRows(ObjectiveRows):
    def preview(self, outcome: Outcome, row_encoding: TextWriting, encoder: Any) -> list[Shown]:
        """The question with each choice."""
        example = outcome.example
        assert isinstance(example, Choices), "other rows have a problem"
        sides: Sequence[Tokens | None] = [None] * len(example.choices)
        why = f"one of the choices makes it longer than {encoder.limit:,} tokens"
        if outcome.sequences:
            sides, why = sides_of(outcome.sequences[0]), None
        return [
            Shown(
                f"{example.where} choice {number}{', the right one' if number == example.answer else ''}",
                [(turns[-1].content, True)] if side is None else row_encoding.segments(side),
                length, 0 if side is None else side.loss_count, why,
            )
            for number, (turns, side, length) in enumerate(
                zip(example.conversations, sides, outcome.lengths, strict=True)
            )
        ]  # fmt: skip


class ChoiceInputs(RowInputs):
    def columns(self, column: str) -> list[str]:
        return columns_beside(column)

    def example_of(self, item: Any, where: str) -> Example:
        """The question, and each choice on a line of its own behind it."""
        lines = item.splitlines() if isinstance(item, str) else []
        question, *choices = [line.strip() for line in lines if line.strip()] or [""]
        if len(choices) < 2:
            raise DataError(
                "This run chooses between answers: write the question, and each choice on a line behind it."
            )
        return choice_example({"question": question, "choices": choices}, where)

    def texts(self, example: Example) -> Sequence[str]:
        """The question, and each choice."""
        return [example.prompt_text, *(example.choices if isinstance(example, Choices) else ())]

    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        spec, most = DataConfig(path="rows"), self.targets.outputs
        encoder = ChoiceEncoder(model.template, model.tokenizer, spec, longest.tokens, most, answered=False)
        outcomes = encoder.encode(examples)
        for outcome in outcomes:
            if outcome.too_long:
                longest.add(outcome, Tokens([0] * max(outcome.lengths), []))
        return outcomes

    def prediction(self, outcome: Outcome, outputs: Numbers) -> ChosenAnswer:
        assert isinstance(outcome.example, Choices), "other rows have a problem"
        choices = outcome.example.choices
        return ChosenAnswer(choices, tuple(outputs[: len(choices)].tolist()))


class ChoiceLoss(ClassLoss):
    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Rows of like length together, longest first; all choices of a question are in the same batch."""
        parts: list[list[Tokens]] = []
        width = count = 0
        for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
            sides = sides_of(row)
            own = max(map(padded_length, sides))
            if not parts or max(width, own) * (count + len(sides)) > max_tokens:
                parts.append([])
                width = count = 0
            parts[-1].append(row)
            width, count = max(width, own), count + len(sides)
        return [self.batch_of(part) for part in parts]

    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        sides = [sides_of(row) for row in rows]
        every = collate(list(chain.from_iterable(sides)))
        inputs = {"input_ids": every.input_ids, "labels": every.targets, "choices": torch.tensor(list(map(len, sides)))}
        return Batch(inputs, values_of(rows, self.targets), len(rows), every.tokens)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Scores (B, C) of the choices, -inf where a row has fewer, in float32 or more."""
        labels = batch.inputs["labels"]
        answers = Batch.of_tokens(batch.input_ids, labels, batch.tokens)
        logs = log_probabilities(SupervisedLogits(module)(answers), answers)
        sums = torch.stack([part.sum() for part in logs.split((labels != IGNORED).sum(1).tolist())])
        rows = pad_sequence(list(sums.split(batch.inputs["choices"].tolist())), True, -torch.inf)
        return F.pad(rows, (0, self.targets.outputs - rows.shape[1]), value=-torch.inf)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        return [row_of(choices) for choices in random_sides(module, lengths, generator)]


WORDS = replace(
    CHATTING,
    use="predict {run} --data FILE --out predictions.csv",
    unmeasured="It chooses one of the given answers, also where none is right. Measure it on questions of your task "
    "(`rankwise evaluate`).",
    cannot=CANNOT,
    shown_as="classes",
    names="choices",
)


def multiple_choice(facts: Facts) -> Objective:
    assert facts.targets is not None, "the places of the choices are counted before"
    targets = ChoiceFacts(**dict(facts.targets))
    loss = ChoiceLoss(targets)
    return Objective(
        NAME, "classes", facts, CAUSAL_LM,
        words=replace(WORDS, learned_share=one_target(targets)),
        rows=ChoiceRows(targets, partial(ChoiceEncoder, most=targets.outputs)), loss=loss,
        score=Score.of_classes(targets), classifier=Classifier(ChoiceInputs(targets), loss),
    )  # fmt: skip
