"""Conversations as a chat template writes them, within limits.

A cut of a conversation has a budget (text/template_sandbox.py) and a longest text. A template that exceeds a limit on a
short conversation is not used: it says nothing about a row. On a long conversation the row is refused, and the template
only after MOST_EXCEEDED of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

from rankwise.errors import ModelError, TemplateError
from rankwise.text.template_sandbox import Budget, ExceededError, Rules, compiled

Cut = tuple[int, bool]
"""How many of the first messages, and whether an answer comes next."""
Result = tuple[str, list[tuple[int, int]]] | TemplateError
"""The text of a cut with its {% generation %} marks, or why there is none."""
WORK, WORK_FOR_EACH = 20_000_000, 100
"""Units of work for a cut, and for each character of the conversation: about half a second, and 100 MB."""
OUTPUT, OUTPUT_FOR_EACH = 50_000, 8
"""The first is for what a template says by itself: system messages of its own, and how tools are called."""
LONGEST_SOURCE = 100_000
LONGEST_REASON = 300
SHORT = 20_000
"""Characters of a conversation up to which a template that exceeds a limit is at fault, and not the conversation."""
MOST_EXCEEDED = 3
EXCEEDED = {
    "work": "does more work than a conversation needs, in loops, calls or with long texts",
    "output": f"writes more than {OUTPUT:,} characters (and {OUTPUT_FOR_EACH} for each that it is given)",
}
_EXCEEDED: Counter[str] = Counter()
_REFUSED: dict[str, str] = {}
_ONE_AT_A_TIME = RLock()


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as a template gets them, and the parts of it that are to be rendered."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None
    cuts: Sequence[Cut]

    @property
    def size(self) -> int:
        return characters(list(self.messages)) + characters(self.tools)


def characters(value: Any) -> int:
    """Characters of all texts in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list | tuple) else 1


def render_conversations(
    source: str, values: Mapping[str, Any], conversations: Sequence[Conversation], rules: Rules = "transformers"
) -> list[list[Result]]:
    """The text of every cut of every conversation. `values` are what the template is given by name.

    Raises ModelError for a template that exceeds a limit.
    """
    if len(source) > LONGEST_SOURCE:
        raise ModelError(f"the chat template has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read.")
    if source in _REFUSED:
        raise ModelError(_REFUSED[source])
    with _ONE_AT_A_TIME:
        return [[*_rendered(Writing(source, values, one, rules))] for one in conversations]


class OutputError(Exception):
    """The text is longer than any template makes of such a conversation."""


@dataclass(frozen=True)
class Writing:
    """A template that writes a conversation."""

    source: str
    values: Mapping[str, Any]
    conversation: Conversation
    rules: Rules

    def cut(self, messages: Sequence[dict[str, Any]], answer_next: bool, size: int) -> Result:
        """The text of some messages."""
        Budget.left = WORK + WORK_FOR_EACH * size
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        length, template = 0, compiled(self.source, self.rules)
        values = {"messages": messages, "tools": self.conversation.tools, "add_generation_prompt": answer_next}
        if self.rules == "transformers":
            template.environment.marked = lambda text: spans.append((length, length + len(text)))
            values["documents"] = None
        for piece in template.generate(**values, **self.values):
            pieces.append(piece)
            length += len(piece)
            if length > OUTPUT + OUTPUT_FOR_EACH * size:
                raise OutputError
        return "".join(pieces), spans


def _rendered(writing: Writing) -> Iterator[Result]:
    conversation, size = writing.conversation, writing.conversation.size
    exceeded: str | None = None
    for count, answer_next in conversation.cuts:
        messages = conversation.messages[:count]
        try:
            if exceeded is None:
                try:
                    yield writing.cut(messages, answer_next, size)
                except TypeError:  # some templates expect the arguments of a call as a text
                    yield writing.cut([_with_text_arguments(one) for one in messages], answer_next, size)
        except (ExceededError, MemoryError):
            exceeded = "work"
        except OutputError:
            exceeded = "output"
        except Exception as error:  # a template can raise any error
            yield TemplateError((str(error) or type(error).__name__)[:LONGEST_REASON])
        if exceeded is not None:
            yield TemplateError(f"it {EXCEEDED[exceeded]}")
    if exceeded is not None:
        _count(writing.source, exceeded, size)


def _count(source: str, exceeded: str, size: int) -> None:
    """Refuse a template that does so again and again, or of a short conversation."""
    _EXCEEDED[source] += 1
    if size <= SHORT or _EXCEEDED[source] >= MOST_EXCEEDED:
        _REFUSED[source] = (
            f"the chat template is not used, because it {EXCEEDED[exceeded]} for a conversation of {size:,} "
            "characters. Repair it in the model's folder, or choose a recipe (data.recipe) or another model."
        )
        raise ModelError(_REFUSED[source])


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls") or []
    ]
    return message | {"tool_calls": calls} if calls else message
