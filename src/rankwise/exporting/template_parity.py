"""Whether an engine's template gives a model the same token ids as the chat template that it was trained with.

Thirty conversations, with and without a system message, of one to four questions, in several scripts, with white space
at the edges, and with tools where the template knows them, are written both ways up to each answer. They must have the
same ids after the model's tokenizer, and the answer must end where training taught the model to end. A conversation
that the other template language cannot express is named, and is never counted as the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Example, Message, ToolCall
from rankwise.rows.text.rendering import shown_of
from rankwise.rows.text.tokenize import prompt_ids
from rankwise.runs.records import Callback, WarningMessage

COUNT = 30


@dataclass(frozen=True)
class ProbeConversation:
    """A conversation up to where the model answers, under a name for messages."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


TEXTS = (
    "What is the capital of France?", ("word " * 400).strip(), "def area(r):\n\treturn 3.14 * r ** 2\n\nExplain this.",
    "Was kostet ein Stück Käsekuchen in Köln?", "你好,请介绍一下巴黎。", "שלום, מה שלומך?", "مرحبا بالعالم",
    "naïve café, Ångström and 10 €", "🙂👩\u200d👧 and 🇳🇴?", "1 < 2 && 3 > 2, \"quoted\" and 'single'",
    "{{ .Prompt }} and {% if %}", "line one\nline two\n\n\nline five", "a\u00a0b\u2028c", "Name three primes.",
    'Answer with yes or no: is {"a": [1, 2]} JSON?',
)  # fmt: skip
ANSWERS = (
    "Paris.", "2, 3 and 5.", "It computes an area.\n\n- pi is 3.14", "Das weiß ich nicht.", "好的。",
    "<b>Yes</b> & no", "4",
)  # fmt: skip
SYSTEMS = ("You answer briefly.", "Du antwortest auf Deutsch.\nImmer.", "Be kind: 你好 & <polite>.")


def _talk(turns: int, first: int, system: str | None = None) -> tuple[Message, ...]:
    messages = [Message("system", system)] if system is not None else []
    for turn in range(turns):
        messages.append(Message("user", TEXTS[(first + turn) % len(TEXTS)]))
        if turn + 1 < turns:
            messages.append(Message("assistant", ANSWERS[(first + turn) % len(ANSWERS)]))
    return tuple(messages)


def _plain() -> list[ProbeConversation]:
    made = [ProbeConversation(f"question {number + 1}", _talk(1, number)) for number in range(12)]
    made += [ProbeConversation(f"{turns} questions", _talk(turns, 3 * turns)) for turns in (2, 3, 4)]
    made += [
        ProbeConversation(
            f"{turns} questions with a system message", _talk(turns, 5 + turns, SYSTEMS[turns % len(SYSTEMS)])
        )
        for turns in (1, 2, 3, 4)
    ]
    edges = {"a space before": " {}", "a space behind": "{} ", "line breaks around": "\n\n{}\n"}
    made += [
        ProbeConversation(f"{name} the question", (Message("user", form.format("Hello")),))
        for name, form in edges.items()
    ]
    blank = (Message("user", "One"), Message("assistant", " Two \n"), Message("user", "Three"))
    made += [
        ProbeConversation("white space around an answer", blank),
        ProbeConversation("white space around a system message", (Message("system", " Be brief.\n"), *_talk(2, 1))),
        ProbeConversation("an empty system message", _talk(1, 2, "")),
    ]
    made += [
        ProbeConversation(f"{2 + number % 3} questions from text {number + 1}", _talk(2 + number % 3, number))
        for number in range(12)
    ]
    apart = [(Message("user", f"{one}\n\n{two}"),) for one, two in pairwise((*TEXTS, TEXTS[0]))]
    return made + [ProbeConversation(f"question of two parts {number + 1}", one) for number, one in enumerate(apart)]


def _tool(name: str, about: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


CITY = {"type": "string", "description": "A city's name"}
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER = _tool("get_weather", "Weather in a city", city=CITY, unit=UNIT)
ADD = _tool("add", "Add two numbers", a={"type": "number"}, b={"type": "number"})
NESTED = _tool("search", "Search", filters={"type": "object", "properties": {"year": {"type": "integer"}}})
UNSORTED = _tool("route", "Plan a route", start=CITY, end=CITY)


def _with_tools() -> list[ProbeConversation]:
    ask, again = Message("user", "How warm is it in Köln?"), Message("user", "And in Oslo?")
    cologne, oslo = (ToolCall("get_weather", {"city": city, "unit": "celsius"}) for city in ("Köln", "Oslo"))
    result, answer = Message("tool", '{"celsius": 21}', name="get_weather"), Message("assistant", "It is 21 °C.")
    called = Message("assistant", "", tool_calls=(cologne,))
    both = Message("assistant", "", tool_calls=(cologne, oslo))
    spoken = Message("assistant", "Let me look.", tool_calls=(oslo,))
    numbers = Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1, "b": -2.5}),))
    system = Message("system", SYSTEMS[0])
    turns: Sequence[tuple[str, tuple[Message, ...], tuple[dict[str, Any], ...]]] = (
        ("tools before a question", (ask,), (WEATHER,)),
        ("two tools and a system message", (system, ask), (WEATHER, ADD)),
        ("a call and its result", (ask, called, result), (WEATHER,)),
        ("a call, its answer and a question", (ask, called, result, answer, again), (WEATHER, ADD)),
        ("two calls at once", (ask, both, result, result), (WEATHER,)),
        ("calls in two turns", (system, ask, called, result, answer, again, spoken, result), (WEATHER,)),
        ("an answer before a call", (ask, spoken, result), (WEATHER,)),
        ("numbers in a call", (Message("user", "1 - 2.5?"), numbers, Message("tool", "-1.5", name="add")), (ADD,)),
        ("questions before a call", (*_talk(2, 1), Message("assistant", "Yes."), ask, called, result), (WEATHER, ADD)),
        ("tools that are not used", _talk(3, 4, SYSTEMS[2]), (ADD,)),
        ("a tool with a nested object", (ask,), (NESTED,)),
        ("a tool whose parameters are not in alphabetical order", (ask,), (UNSORTED,)),
    )
    return [ProbeConversation(*one) for one in turns]


@cache
def conversations() -> tuple[ProbeConversation, ...]:
    """All conversations, those with tools first."""
    return (*_with_tools(), *_plain())


Renderer = Callable[[Sequence[Any], Sequence[Any]], str]
"""Writes messages and tools as an engine does, up to where the model begins to write."""


@dataclass(frozen=True)
class Parity:
    """The result. `conversations` is their number, `same` that of equal ids."""

    conversations: int
    same: int
    refused: tuple[str, ...]
    """What the other template language cannot express, with the number of conversations."""
    different: tuple[str, ...]
    """Conversations whose ids differ, and stops that differ. An export with one of these is not correct."""
    carrier: str | None = None
    """The file, or the field of a GGUF file, that carries the engine's template; None where nothing was written."""

    def warn(self, engine: str, callback: Callback) -> None:
        if self.different:
            callback(WarningMessage(
                f"{engine} writes {len(self.different)} of {self.conversations} conversations otherwise than training "
                f"did, first {self.different[0]}"
            ))  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """For `rankwise export --json`."""
        facts = {"conversations": self.conversations, "same": self.same, "refused": list(self.refused)}
        return facts | {"in": self.carrier} | ({"different": list(self.different)} if self.different else {})


def template_parity(
    template: ChatTemplate, render: Renderer, *, adds_start: bool, stops: Sequence[str] | None = None,
    reasons: Callable[[ProbeConversation], list[str]] = lambda _: [], carrier: str | None = None,
) -> Parity:  # fmt: skip
    """Compare an engine's template with training's.

    `render` writes a conversation as the engine does. `adds_start` says whether the engine puts the start token before
    it. `stops` are the texts at which the engine ends an answer, or None if it reads them from the model's file.
    `reasons` names what the engine's template cannot express in a conversation; `carrier` is the file of that template.
    """
    known = [one for one in conversations() if _knows(template, one)][:COUNT]
    start = template.tokenizer.hub.bos_token or "" if adds_start else ""
    same, different, refused = 0, [], {}
    for one in known:
        if why := reasons(one):
            refused.setdefault(why[0], []).append(one)
            continue
        difference = _difference(template, one, start, render)
        same += difference is None
        different += [f"{one.name}: {difference}"] if difference else []
    if stops is not None and (missing := [end for end in template.ends if end not in stops]):
        different.append(f"the answer ends with {', '.join(map(repr, missing))}, at which the engine does not stop")
    lines = tuple(f"{why} ({len(those)} of {len(known)} conversations)" for why, those in refused.items())
    return Parity(len(known), same, lines, tuple(different), carrier)


def _knows(template: ChatTemplate, conversation: ProbeConversation) -> bool:
    """Whether the chat template itself shows all of the conversation, so that a row like it can be trained on."""
    messages = tuple(replace(message, content=message.content or "-") if message.role == "system" else message
                     for message in conversation.messages)  # fmt: skip
    try:
        return not shown_of(Example(messages, conversation.name, tools=conversation.tools), template).missing
    except TemplateError:
        return False


def _difference(template: ChatTemplate, conversation: ProbeConversation, start: str, render: Renderer) -> str | None:
    trained = template.text(conversation.messages, conversation.tools, answer_next=True)
    try:
        served = start + render(conversation.messages, conversation.tools)
    except TemplateError as error:
        return f"the engine's template fails: {error}"
    wanted, given = prompt_ids(trained, template.tokenizer), prompt_ids(served, template.tokenizer)
    if wanted == given:
        return None
    place = next((n for n, pair in enumerate(zip(wanted, given, strict=False)) if pair[0] != pair[1]), -1)
    place = min(len(wanted), len(given)) if place < 0 else place
    return (
        f"token {place + 1} of {len(wanted)} is {template.tokenizer.decode(given[place : place + 4])!r} instead of "
        f"{template.tokenizer.decode(wanted[place : place + 4])!r}"
    )
