"""A conversation as a chat template writes it: whole, and up to each of its answers.

All of these texts are asked for at once, because each request to the process that renders takes longer than a short
conversation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.errors import TemplateError, some
from rankwise.rows.text.example import Message
from rankwise.rows.text.template_probe import Span
from rankwise.rows.text.template_process import Cut, Result

Conversation = tuple[Sequence[Message], Sequence[Any]]
"""Messages, and the tools that can be called."""


@dataclass(frozen=True)
class Written:
    """`prefix` is what the tokenizer puts before every text, `results` what was rendered, and `render` renders other
    parts."""

    messages: Sequence[Message]
    prefix: str
    results: Mapping[Cut, Result]
    render: Callable[[Cut], Result]

    @property
    def whole(self) -> str:
        return self.text(len(self.messages))

    @property
    def spans(self) -> list[Span]:
        """Where {% generation %} marks begin and end in the whole text."""
        shift = len(self.prefix)
        return [(start + shift, stop + shift) for start, stop in self.result(len(self.messages))[1]]

    def text(self, count: int, *, answer_next: bool = False) -> str:
        """The first `count` messages; with `answer_next`, up to the point where the model begins to write."""
        return self.prefix + self.result(count, answer_next)[0]

    def first(self, count: int) -> Written:
        """The first messages as a conversation of their own."""
        return replace(self, messages=self.messages[:count])

    def result(self, count: int, answer_next: bool = False) -> tuple[str, list[Span]]:
        """The text without the prefix, and its marks."""
        cut = count, answer_next
        result = self.results[cut] if cut in self.results else self.render(cut)
        if isinstance(result, TemplateError):
            roles = some(message.role for message in self.messages[:count])
            raise TemplateError(f"the chat template refuses a conversation of {roles}: {result}")
        return result
