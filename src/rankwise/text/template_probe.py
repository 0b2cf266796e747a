"""What a template shows of a conversation, found with words like no other in the place of what was said.

A template may drop a system message, a tool's result or the names of the tools, and mark a question as an answer; the
text alone does not tell, since an answer can say what the tool found. So a conversation of the same shape is rendered
in which each part is a word of its own, once for each shape, and the words are looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rankwise.errors import TemplateError
from rankwise.text.example import Example, Message

Span = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    missing: tuple[str, ...]
    """Parts of such a conversation that the model would not be shown."""
    marks_hold: bool
    """Each {% generation %} mark begins with its own answer."""
    controls: int
    """How many control tokens the template writes."""


class Renders(Protocol):
    """The part of a template that this needs."""

    @property
    def shapes(self) -> dict[Any, Shown]:
        """What has been found so far."""
        ...

    def marked(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> tuple[str, list[Span]]: ...

    def controls(self, text: str) -> int:
        """How many control tokens stand in a text."""
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
            "the chat template makes a control token out of what somebody typed: it takes something out of the text, "
            "and what is left is read as one."
        )


def merged(spans: Sequence[Span]) -> list[Span]:
    """Marks that touch as one, without those that hold nothing."""
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
    called = {"system": "the system message", "tool": "the tool's result in"}.get(message.role, "what was said in")
    return called if message.role == "system" else f"{called} turn {number}"
