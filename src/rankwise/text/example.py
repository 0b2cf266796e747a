"""One checked row, before any template or tokenizer has seen it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

BREAK = "\ufdd0"
"""Stands inside a control token that somebody typed, so that neither a template nor a tokenizer takes it for one.

Unicode keeps this character for a program's own use; the tokenizer's input never holds it (text/tokenize.py).
"""
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is a JSON object."""

    name: str
    arguments: dict[str, Any]
    call_id: str | None = None


@dataclass(frozen=True)
class Message:
    role: Role
    content: str
    context: str = ""
    """What a question is about, kept apart from it: Alpaca's input, Dolly's context."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Of the tool that answers."""
    call_id: str | None = None
    """Of the call that a tool answers."""
    learned: bool = True
    """False for an answer that is given and not learned (OpenAI's weight 0)."""

    @property
    def whole(self) -> str:
        """The content with its context below, for templates that have no place for one."""
        return f"{self.content}\n\n{self.context}" if self.context.strip() else self.content


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer, or a text that is learned whole.

    `where` is `file:line`, for messages about this row.
    """

    messages: tuple[Message, ...]
    where: str
    tools: tuple[dict[str, Any], ...] = field(default=())
    """What could be called, each a JSON schema in OpenAI's form."""
    text: str | None = None
    """Instead of messages."""
    group: str | None = None
    """The row's value of data.group."""
    alternatives: tuple[str, ...] = ()
    """Other texts that are right as well as the last answer; they are not learned."""

    @property
    def asked(self) -> str:
        """All that was said before the last answer, without the system message; of a text, the text."""
        turns = [message.whole for message in self.messages[:-1] if message.role != "system"]
        return "\n".join(turns) if self.text is None else self.text

    @property
    def said(self) -> str:
        """The row as one text, for finding others that say the same; a system message that many share is left out."""
        turns = [f"{turn.role}: {turn.whole}{_calls(turn)}" for turn in self.messages if turn.role != "system"]
        return "\n".join(turns) if self.text is None else self.text

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None


def _calls(message: Message) -> str:
    return "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
