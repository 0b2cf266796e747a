"""How a model's template writes calls of tools, found by letting it write one.

A grammar for calls has the texts around the names and arguments, and between them a name and arguments by its schema:

    <tool_call>\\n{"name": "weather", "arguments": {…}}\\n</tool_call>\\n<tool_call>\\n{"name": …
    opening       head                middle         tail        between             head
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message, ToolCall, placed_calls

NAME, ID = "function_to_find", "c4llF0und"
"""What a template is given to write as a call; some want an id of nine letters and digits."""


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
    places = [(begin, end) for begin, end, _ in placed_calls(answer, (NAME,))]
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
