"""One checked row, before any template or tokenizer has seen it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer. `where` is `file:line`, for messages about this row."""

    messages: tuple[Message, ...]
    where: str
