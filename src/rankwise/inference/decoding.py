"""Answers as they are written: their text so far, and why they end.

A Draft looks at each token that its row got (batch.py). Text is given out as soon as no later token can change it: a
stop text, or half of a character, is held back until it is whole.

Whether an answer has run into a loop: its tail is one group of tokens, written again and again.

A tail has the period p where each of its tokens equals the one p before it. It is a loop where p is at most PERIOD, the
group stands there TIMES times at least, and the tail has TOKENS tokens at least:

    tail >= max(TIMES * p, TOKENS)

An answer is looked at after every STAGE tokens, so that it is cut at the same place alone and in company. The numbers
are such that none of 10,900 answers of Dolly, LIMA, ShareGPT and others, two million tokens, is a loop at any place;
eight lines of one text are none either, up to 15 tokens a line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rankwise.inference.batch import GenerationRow
from rankwise.inference.sampling import Chosen
from rankwise.rows.text.chat_template import ChatTemplate

PERIOD, TIMES, TOKENS = 64, 8, 128
STAGE = 16
assert TOKENS % STAGE == 0, "the first look may already find one"
UNFINISHED = "\ufffd"
"""What half of a character is decoded as."""


def repeats(ids: Sequence[int]) -> bool:
    """Whether the tail of `ids` is a loop."""
    if len(ids) < TOKENS:
        return False
    periods = [period for period in range(1, PERIOD + 1) if ids[-1 - period] == ids[-1]]
    tail = np.asarray(ids[-TIMES * PERIOD :])
    return any(_periodic(tail, period) for period in periods)


def _periodic(tail: np.ndarray, period: int) -> bool:
    size = max(TIMES * period, TOKENS)
    return len(tail) >= size and bool((tail[-size:-period] == tail[-size + period :]).all())


TextCallback = Callable[[str], None]
Stopped = Literal["end", "length", "repetition"]


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    stopped: Stopped
    seconds: float
    """From the beginning of what was asked together with it."""
    ids: tuple[int, ...] = ()
    """The tokens of the answer, with the end token where the model wrote one."""


@dataclass(frozen=True)
class Piece:
    """What is new of an answer: its text, the tokens that were chosen, and at the end why it ended. `problem` is a
    sentence where it could not be written."""

    text: str = ""
    chosen: tuple[Chosen, ...] = ()
    stopped: Stopped | None = None
    problem: str | None = None


@dataclass(eq=False)
class Draft:
    """An answer that is written, at most `longest` tokens. It ends at the template's ends, at the request's stop texts,
    and with `loops` where it repeats itself. One that is not `spoken` continues a text."""

    row: GenerationRow
    template: ChatTemplate
    longest: int
    stops: tuple[str, ...] = ()
    spoken: bool = True
    loops: bool = False
    seen: int = 0
    """Tokens of its row that were looked at."""
    sent: int = 0
    """Characters that were given out."""
    chosen: list[Chosen] = field(default_factory=list)
    """How its tokens were chosen, where it is taken piece by piece."""
    stopped: Stopped | None = None

    def take(self, chosen: Sequence[Chosen]) -> Piece:
        """What tokens add, which the row has already."""
        seen = self.seen
        self.look()
        chosen = tuple(chosen)[: self.seen - seen]
        self.chosen += chosen
        text = self._text()
        if self.stopped is None and text.endswith(UNFINISHED):
            return Piece(chosen=chosen)
        new = text[self.sent :]
        self.sent = max(self.sent, len(text))
        return Piece(new, chosen, self.stopped)

    def look(self) -> None:
        """Whether the answer ends with one of its row's new tokens; those behind it are taken away."""
        ids = self.row.ids
        while self.stopped is None and self.seen < len(ids):
            self.seen += 1
            self._end(ids if self.seen == len(ids) else ids[: self.seen])
        del ids[self.seen :]

    def _end(self, ids: Sequence[int]) -> None:
        """Whether the answer ends with the last of these."""
        if ids[-1] in self.template.end_ids:
            self.stopped = "end"
        elif self.loops and len(ids) % STAGE == 0 and repeats(ids):
            self.stopped = "repetition"
        elif (self.spoken and self.template.answers.has_end(ids)) or self._stop is not None:
            self.stopped = "end"
        elif len(ids) >= self.longest:
            self.stopped = "length"

    def answer(self, seconds: float = 0.0) -> Answer:
        """The answer as it stands, from the tokens written so far."""
        return Answer(
            self._full_text[: self._stop],
            len(self._answer_tokens),
            self.stopped or "length",
            seconds,
            tuple(self.row.ids),
        )

    def _text(self) -> str:
        """What later tokens cannot change."""
        if self.stopped is not None:
            return self._full_text[: self._stop]
        ids = self.row.ids
        text = self.template.answers.streamed(ids) if self.spoken else self.template.tokenizer.readable(ids)
        sizes = (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return text[: len(text) - max(sizes, default=0)]

    @property
    def _answer_tokens(self) -> Sequence[int]:
        """Without an end token."""
        ids = self.row.ids
        return ids[:-1] if ids and ids[-1] in self.template.end_ids else ids

    @property
    def _full_text(self) -> str:
        return (self.template.answers.read if self.spoken else self.template.tokenizer.readable)(self._answer_tokens)

    @property
    def _stop(self) -> int | None:
        """Where the first stop text begins."""
        text = self._full_text if self.stops else ""  # decoded once, however many stop texts there are
        return min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=None)


def read_answer(ids: Sequence[int], template: ChatTemplate) -> Answer:
    """What an answer's ids say up to their end. Of a row that was cut there may be none."""
    draft = Draft(GenerationRow([]), template, len(ids) + 1)
    draft.row.ids += ids
    draft.look()
    return draft.answer()
