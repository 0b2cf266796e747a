"""A checked row, before templates and tokenizers: a conversation, or a plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankwise.rows.text.tagged import TaggedWords

BREAK = "\ufdd0"
"""A character inserted into a control token that somebody typed, so that it is not read as a control token.

Unicode reserves this character for internal use. It is removed before tokenizing (rows/text/tokenize.py).
"""
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. `arguments` is a JSON object."""

    name: str
    arguments: dict[str, Any]
    call_id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    context: str = ""
    """Text that the question is about, such as Alpaca's input or Dolly's context."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Name of the tool, in a tool's result."""
    call_id: str | None = None
    """Id of the call that a tool's result belongs to."""
    learned: bool = True
    """Whether an answer is in the loss. False for OpenAI's weight 0."""

    @property
    def whole(self) -> str:
        """The content with its context below, for templates without a place for a context."""
        return f"{self.content}\n\n{self.context}" if self.context.strip() else self.content


@dataclass(frozen=True, eq=False)
class ImageContent:
    """An image that is not decoded yet."""

    source: Path | bytes | np.ndarray
    """A file, the bytes of a file, or pixels: (H, W), (H, W, 1) or (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known of an image once it was decoded. `width` and `height` are those of the upright image."""

    width: int
    height: int
    notes: tuple[str, ...]
    """What was changed in decoding it."""
    content: bytes
    """A hash of its pixels."""
    perceptual: int | None
    """A hash of 64 bits that is nearly the same for images that look the same; None for an image of one colour."""


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer, or a plain text that is in the loss as a whole.

    `where` is `file:line`, for messages about this row.
    """

    messages: tuple[Message, ...]
    where: str
    tools: tuple[dict[str, Any], ...] = field(default=())
    """The tools that can be called, each as a JSON schema in OpenAI's format."""
    text: str | None = None
    """The plain text; then there are no messages."""
    group: str | None = None
    """The row's value of data.group."""
    rejected: tuple[Message, ...] = ()
    """Of a pair: the same conversation with the answer that was not preferred. `messages` have the chosen one."""
    alternatives: tuple[str, ...] = ()
    """Other correct answers in place of the last one. They are not trained on."""
    image: ImageContent | None = None
    """The image of an image's row. Then the first message is its name, and the second its label."""

    labels: tuple[str, ...] | None = None
    """The names of a row whose label is a list of names. Then the second message is all of them."""
    tagged: TaggedWords | None = None
    """The words of a text with tags. Then the first message is the text, and the second what the tags stand for."""

    @property
    def conversations(self) -> Sequence[tuple[Message, ...]]:
        """Its messages, and the same with every other answer that they are compared with."""
        return [self.messages, *([self.rejected] if self.rejected else [])]

    @property
    def question(self) -> Example:
        """The same without its answer, as a row that is to be answered."""
        tagged = self.tagged and replace(self.tagged, tags=())
        return Example(self.messages[:-1], self.where, self.tools, image=self.image, tagged=tagged)

    @property
    def exchange(self) -> tuple[str, str] | None:
        """The question and the answer of a row that has no other turns."""
        turns = self.messages[1:] if self.system is not None else self.messages
        if len(turns) != 2 or self.tools or self.tagged is not None or turns[1].tool_calls:
            return None
        return (turns[0].whole, turns[1].content) if turns[0].role == "user" else None

    @property
    def special(self) -> tuple[str, str] | None:
        """Of a row that only some objectives learn as it is meant: its form, and what such rows hold."""
        if self.rejected:
            return "pairs", "preference pairs. Add --objective preference."
        if self.tagged is not None:
            return "tags", "words with tags. Add --objective token-classification."
        if self.image is not None:
            return "images", (
                "images, and the model {model} reads texts. Choose a vision model with --model, such as dinov2-small."
            )
        return None

    @property
    def prompt_text(self) -> str:
        """Everything before the last answer, without the system message; for a plain text, the text."""
        turns = [message.whole for message in self.messages[:-1] if message.role != "system"]
        return "\n".join(turns) if self.text is None else self.text

    @property
    def full_text(self) -> str:
        """The row as one text without the system message, for the search for duplicates."""
        every = chain.from_iterable(self.conversations)
        turns = [f"{turn.role}: {turn.whole}{_calls(turn)}" for turn in every if turn.role != "system"]
        return "\n".join(turns) if self.text is None else self.text

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None


def _calls(message: Message) -> str:
    return "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
