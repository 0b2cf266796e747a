"""Examples in the prompt: a few training rows as earlier turns of the conversation that a held-out row ends.

    opening  question 1  answer 1  turn  question 2  answer 2  turn  …  question  [answer]

`opening` is what the chat template writes before the first question, and `turn` what it writes between an answer and
the next question. Both are read off two conversations that differ in their questions alone. Where the rows do not begin
with the opening, or the template has no such conversations, whole rows stand one behind the other. The ids of the
answers stay those of the rows, so losses with and without examples are of the same tokens.

Answers behind the questions of other rows: does a model use the question at all?

    content = loss of a row's answer behind another row's question - its loss behind its own

A model that has only learned which answers occur, and how they are written, loses nothing when questions are swapped.
Where the answers of the rows were never related to their questions, own and other questions are exchangeable, so the
content is 0 on average whatever the model has learned. The answer's tokens are the same on both sides, so that each row
is compared with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.errors import TemplateError
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.tokenize import Tokens, prompt_ids

QUESTIONS = ("Alpha", "7")
"""They begin with different characters, so that the common beginning ends where they begin."""
BETWEEN = "\n\n"
"""Between rows that are no conversations."""


@dataclass(frozen=True)
class Frame:
    opening: tuple[int, ...] = ()
    turn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Context:
    """The ids of the examples, and each row without its opening."""

    prefix: tuple[int, ...]
    rows: tuple[Tokens, ...]
    examples: int

    @property
    def whole(self) -> list[Tokens]:
        """The rows with the examples in front of them."""
        before = (False,) * len(self.prefix)
        return [Tokens((*self.prefix, *row.ids), (*before, *row.loss_mask)) for row in self.rows]


def with_examples(
    model: LoadedModel, rows: Sequence[Tokens], examples: Sequence[Tokens], system: str | None
) -> Context | None:
    """Put as many of the examples in front of the rows as the model's context has room for; None if it has none."""
    frame = _frame(model, system)
    if not _begin_with(frame.opening, [*rows, *examples]):
        frame = Frame((), tuple(prompt_ids(BETWEEN, model.tokenizer)))
    rest = tuple(_without(len(frame.opening), row) for row in rows)
    longest = max(len(row.ids) for row in rest)
    for count in range(len(examples), 0, -1):
        prefix = _joined(frame, examples[:count])
        if model.context_length is None or len(prefix) + longest <= model.context_length:
            return Context(prefix, rest, count)
    return None


def _begin_with(opening: Sequence[int], rows: Sequence[Tokens]) -> bool:
    """Whether all rows begin with the opening, and the loss begins behind it."""
    size = len(opening)
    return all(tuple(row.ids[:size]) == tuple(opening) and not np.any(row.loss_mask[: size + 1]) for row in rows)


def _without(size: int, row: Tokens) -> Tokens:
    return Tokens(tuple(map(int, row.ids[size:])), tuple(map(bool, row.loss_mask[size:])))


def _joined(frame: Frame, examples: Sequence[Tokens]) -> tuple[int, ...]:
    ids = list(frame.opening)
    for row in examples:
        end = int(np.flatnonzero(row.loss_mask)[-1]) + 1
        ids += [*map(int, row.ids[len(frame.opening) : end]), *frame.turn]
    return tuple(ids)


def _frame(model: LoadedModel, system: str | None) -> Frame:
    """An empty frame where the template cannot write a conversation of two questions, or moves its parts."""
    opening = (Message("system", system),) if system else ()
    encoder = Encoder(model.template, model.tokenizer, DataConfig(path="probe"), 10**9)
    probes = [Example((*opening, *_conversation(question)), "probe") for question in QUESTIONS]
    try:
        outcomes = encoder.encode(probes)
    except TemplateError:
        return Frame()
    if any(len(outcome.sequences) != 1 for outcome in outcomes):
        return Frame()
    one, other = (outcome.sequences[0] for outcome in outcomes)
    ends = [_end_of_first_answer(row) for row in (one, other)]
    return Frame(
        _common(one.ids, other.ids), _common(*(row.ids[end:] for row, end in zip((one, other), ends, strict=True)))
    )


def _conversation(question: str) -> tuple[Message, ...]:
    asked = Message("user", question)
    return asked, Message("assistant", "Yes."), asked, Message("assistant", "No.")


def _end_of_first_answer(row: Tokens) -> int:
    learned = np.asarray(row.loss_mask, bool)
    begin = int(np.argmax(learned))
    return begin + int(np.argmin(learned[begin:]))


def _common(one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return tuple(int(token) for token, _ in pairs)


def with_other_questions(rows: Sequence[Tokens], seed: int, longest: int | None = None) -> list[Tokens] | None:
    """Each row's answers behind the first question of another row, which no two rows share. None where a row has no
    question, or there are no two different ones. An answer that would not fit into `longest` keeps its own question."""
    begins = [first_answer(row) for row in rows]
    questions = [tuple(map(int, row.ids[:begin])) for row, begin in zip(rows, begins, strict=True)]
    if min(begins, default=0) < 2 or len(set(questions)) < 2:
        return None
    order = np.random.default_rng([seed, 7]).permutation(len(rows))
    partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    swapped: list[Tokens] = []
    for at, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        question = questions[partner[at]]
        answer, learned = tuple(map(int, row.ids[begin:])), tuple(map(bool, row.loss_mask[begin:]))
        fits = longest is None or len(question) + len(answer) <= longest
        swapped.append(Tokens((*question, *answer), (*[False] * len(question), *learned)) if fits else row)
    return swapped


def first_answer(row: Tokens) -> int:
    """Where the first token in the loss stands."""
    return int(np.argmax(np.asarray(row.loss_mask, bool)))
