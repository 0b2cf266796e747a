"""Calls of tools in an answer: JSON objects that name one of the request's tools and give its arguments.

    <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>      Hermes, Qwen, SmolLM
    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]               Mistral
    {"name": "weather", "parameters": {"city": "Rome"}}                            Llama 3

Around the objects models write marks of their own, so the objects alone are looked for. What stands before the first
one, without the marks, is the content of the message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MARKS = re.compile(r"(<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]|\[|```(json)?|\s)*$")
"""Behind the content and before the first object."""
MOST = 64


@dataclass(frozen=True)
class Called:
    name: str
    arguments: dict[str, Any]


def calls_in(text: str, names: Collection[str]) -> tuple[str, list[Called]]:
    """The content before the first call, and the calls of the tools of these names; the whole text where there are
    none."""
    decoder, calls, first, place = json.JSONDecoder(), list[Called](), 0, text.find("{")
    while 0 <= place and len(calls) < MOST:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = None, place + 1
        called = _called(value, names)
        if called is not None:
            first = first if calls else place
            calls.append(called)
        place = text.find("{", end)
    return (MARKS.sub("", text[:first]), calls) if calls else (text, [])


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
