"""One answer that somebody asked for, from its prompt to its end, independent of the form of the request.

The engine calls `take` with each token, and passes on what it returns. Text is given out as soon as no later token can
change it: a stop text, or half of a character, is held back until it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rankwise.inference.growing_batch import Row
from rankwise.inference.sampling import Chosen
from rankwise.rows.text.chat_template import ChatTemplate

Finish = Literal["stop", "length"]
UNFINISHED = "\ufffd"
"""What half of a character is decoded as."""


@dataclass(frozen=True)
class Piece:
    """What is new of an answer: its text, the tokens that were chosen, and at the end why it ended. `problem` is a
    sentence where it could not be written."""

    text: str = ""
    chosen: tuple[Chosen, ...] = ()
    finish: Finish | None = None
    problem: str | None = None


@dataclass(eq=False)
class Pending:
    """`ends` are the tokens that end it, and `read` makes the text of its tokens: the whole, or with True as much as
    later tokens cannot change. `send` is called in the engine's thread."""

    row: Row
    longest: int
    ends: frozenset[int]
    stops: tuple[str, ...]
    read: Callable[[Sequence[int], bool], str]
    has_ended: Callable[[Sequence[int]], bool]
    send: Callable[[Piece], None]
    sent: int = 0
    """Characters that were given out."""
    cancelled: bool = False
    began: float = 0.0
    """When its prompt was read, by the engine's clock."""
    _finish: Finish | None = None

    @property
    def finished(self) -> bool:
        return self._finish is not None

    def take(self, chosen: Chosen) -> Piece:
        """The row has this token already."""
        ids = self.row.ids
        if chosen.token in self.ends:
            return self._end("stop", ids[:-1], (chosen,))
        if self.has_ended(ids) or (self.stops and self._stop_at(self.read(ids, False)) is not None):
            return self._end("stop", ids, (chosen,))
        if len(ids) >= self.longest:
            return self._end("length", ids, (chosen,))
        text = self.read(ids, True)
        if text.endswith(UNFINISHED):
            return Piece(chosen=(chosen,))
        return self._piece(text[: len(text) - _begun(text, self.stops)], (chosen,), None)

    def _end(self, finish: Finish, ids: Sequence[int], chosen: tuple[Chosen, ...]) -> Piece:
        self._finish = finish
        text = self.read(ids, False)
        return self._piece(text[: self._stop_at(text)], chosen, finish)

    def _piece(self, text: str, chosen: tuple[Chosen, ...], finish: Finish | None) -> Piece:
        new = text[self.sent :]
        self.sent = max(self.sent, len(text))
        return Piece(new, chosen, finish)

    def _stop_at(self, text: str) -> int | None:
        return min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=None)


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop text."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)


def spoken(template: ChatTemplate) -> Callable[[Sequence[int], bool], str]:
    """The text of an answer in a conversation."""
    return lambda ids, begun: template.streamed_text(ids) if begun else template.answer_text(ids)


def written(template: ChatTemplate) -> Callable[[Sequence[int], bool], str]:
    """The text with which a model continues another."""
    return lambda ids, begun: template.tokenizer.readable(ids)
