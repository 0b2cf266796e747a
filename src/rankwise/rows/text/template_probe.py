"""Check which parts of a conversation a chat template shows to the model.

A template may leave out a system message, a tool's result or the names of the tools, or mark a question as an answer.
The rendered text alone does not show this, because an answer can repeat other parts. So a conversation with the same
shape is rendered in which each part is a unique word, once for each shape, and these words are looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rankwise.errors import TemplateError
from rankwise.rows.text.example import Example, Message

Span = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """What a template shows of conversations of one shape."""

    missing: tuple[str, ...]
    """Parts that the template leaves out."""
    marks_fit: bool
    """Whether each {% generation %} mark begins with its own answer."""
    controls: int
    """Number of control tokens that the template writes."""


class Renders(Protocol):
    """The part of a template that this module needs."""

    @property
    def shapes(self) -> dict[Any, Shown]:
        """The results for the shapes checked so far."""
        ...

    def marked(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> tuple[str, list[Span]]: ...

    def controls(self, text: str) -> int:
        """Number of control tokens in a text."""
        ...


def shown_of(example: Example, template: Renders) -> Shown:
    key = (tuple(map(_shape, example.messages)), tuple(_name(tool) for tool in example.tools))
    if key not in template.shapes:
        template.shapes[key] = _look(_probe(example), template)
    return template.shapes[key]


def refuse_unshown(example: Example, template: Renders, whole: str) -> None:
    shown = shown_of(example, template)
    if shown.missing:
        raise TemplateError(f"the chat template does not show {shown.missing[0]}, so the model would not know it.")
    if template.controls(whole) > shown.controls:
        raise TemplateError(
            "the chat template turns text of the row into a control token: it removes something from the text, and the "
            "rest is read as a control token."
        )


def merged(spans: Sequence[Span]) -> list[Span]:
    """Join marks that touch, and drop empty ones."""
    joined: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _shape(message: Message) -> tuple[Any, ...]:
    calls = tuple((call.name, call.call_id) for call in message.tool_calls)
    return message.role, bool(message.content.strip()), bool(message.context.strip()), calls, message.call_id


def _name(tool: dict[str, Any]) -> str:
    return str(tool["function"]["name"])


def _word(part: str, number: int) -> str:
    return f"{part}-like-no-other-{number}."


def _probe(example: Example) -> Example:
    messages = tuple(
        replace(
            message,
            content=_word(message.role, number) if message.content.strip() else "",
            context=_word("context", number) if message.context.strip() else "",
        )
        for number, message in enumerate(example.messages, start=1)
    )
    tools = tuple(
        tool | {"function": tool["function"] | {"name": _word("tool", number)}}
        for number, tool in enumerate(example.tools, start=1)
    )
    return replace(example, messages=messages, tools=tools)


def _look(probe: Example, template: Renders) -> Shown:
    whole, spans = template.marked(probe.messages, probe.tools)
    missing = ["the model its tools"] if any(_name(tool) not in whole for tool in probe.tools) else []
    for number, message in enumerate(probe.messages, start=1):
        if message.role != "assistant" and not (message.content in whole and message.context in whole):
            missing.append(_called(message, number))
    answers = [message.content for message in probe.messages if message.role == "assistant"]
    marks = merged(spans)
    hold = len(marks) == len(answers) and all(
        whole[start:stop].lstrip().startswith(answer) for (start, stop), answer in zip(marks, answers, strict=True)
    )
    return Shown(tuple(missing), hold, template.controls(whole))


def _called(message: Message, number: int) -> str:
    called = {"system": "the system message", "tool": "the tool's result in"}.get(message.role, "the text of")
    return called if message.role == "system" else f"{called} turn {number}"
