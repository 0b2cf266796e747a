"""Calls of tools: read from answers, and how a model's template writes them.

A call is a JSON object that names one of the request's tools and gives its arguments:

    <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>      Hermes, Qwen, SmolLM
    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]               Mistral
    {"name": "weather", "parameters": {"city": "Rome"}}                            Llama 3

Around the objects models write marks of their own, so the objects alone are looked for. What stands before the first
one, without the marks, is the content of the message.

What a template writes around a call is found by letting it write one. A grammar for calls has these texts, and between
them a name and arguments by its schema:

    <tool_call>\\n{"name": "weather", "arguments": {…}}\\n</tool_call>\\n<tool_call>\\n{"name": …
    opening       head                middle         tail        between             head
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any

from rankwise.config.base import JsonObject
from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message, ToolCall

MARKS = re.compile(r"(<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]|\[|```(json)?|\s)*$")
"""Behind the content and before the first object."""
MOST = 64
NAME, ID = "function_to_find", "c4llF0und"
"""What a template is given to write as a call; some want an id of nine letters and digits."""


@dataclass(frozen=True)
class Called:
    name: str
    arguments: JsonObject

    def as_json(self) -> JsonObject:
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def calls_in(text: str, names: Collection[str]) -> tuple[str, list[Called]]:
    """The content before the first call, and the calls of the tools of these names; the whole text where there are
    none."""
    found = list(islice(_calls_with_places(text, names), MOST))
    return (MARKS.sub("", text[: found[0][0]]), [called for _, _, called in found]) if found else (text, [])


def _calls_with_places(text: str, names: Collection[str]) -> Iterator[tuple[int, int, Called]]:
    """Each call, with where its object begins and ends."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = None, place + 1
        if (called := _called(value, names)) is not None:
            yield place, end, called
        place = text.find("{", end)


def _called(value: Any, names: Collection[str]) -> Called | None:
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return Called(name, arguments)


@dataclass(frozen=True)
class CallForm:
    """The texts around the names and arguments of calls."""

    opening: str
    head: str
    middle: str
    tail: str
    closing: str
    between: str | None
    """None where the template writes one call at most."""

    @property
    def mark(self) -> str:
        """What tells a call from a text as soon as it is written."""
        return self.opening.strip() or self.head.strip()


@lru_cache(maxsize=16)
def form_of(template: ChatTemplate) -> CallForm | None:
    """How the template writes calls; None where it writes none, or in another form than such objects."""
    for count in (2, 1):
        with suppress(TemplateError):
            return _form_in(_written_calls(template, count), template.ends, count)
    return None


def _written_calls(template: ChatTemplate, count: int) -> str:
    """An answer of so many calls."""
    tool = {"type": "function", "function": {"name": NAME, "description": "", "parameters": {"type": "object"}}}
    asked, calls = Message("user", "?"), (ToolCall(NAME, {"at": 1}, ID),) * count
    whole = template.text([asked, Message("assistant", "", tool_calls=calls)], [tool])
    prompt = template.text([asked], [tool], answer_next=True)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(whole, prompt, strict=False))
    return whole[len(list(common)) :]


def _form_in(answer: str, ends: Collection[str], count: int) -> CallForm | None:
    places = [(begin, end) for begin, end, _ in _calls_with_places(answer, (NAME,))]
    if len(places) != count:
        return None
    (begin, end), (_, last) = places[0], places[-1]
    head, _, rest = answer[begin:end].partition(json.dumps(NAME))
    at = rest.find("{")
    try:
        behind = json.JSONDecoder().raw_decode(rest, at)[1] if at >= 0 else 0
    except ValueError:  # arguments that are a text
        behind = 0
    closing = answer[last : min((place for one in ends if (place := answer.find(one, last)) >= 0), default=None)]
    between = answer[end : places[1][0]] if count > 1 else None
    return CallForm(answer[:begin], head, rest[:at], rest[behind:], closing.rstrip(), between) if behind else None
