"""Find out what a chat template writes around the texts of a conversation, so that a Go template can write the same.

Conversations of many shapes are rendered in which each text is a unique word. What stands before a word is a literal,
and it must depend only on its context: the kind of the text, the kind before it, whether it belongs to the last
question, and whether there are tools. If it depends on more, or if a template rewrites the texts themselves, then a Go
template in Ollama cannot write the same, because Ollama offers no function for texts. Each such case is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rankwise.errors import TemplateError
from rankwise.exporting.go_template import GoTemplateError
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import Message, ToolCall
from rankwise.text.jinja_source import names

TOOLS = "\ue000"
"""Stands in a literal for the descriptions of the tools. Unicode leaves this character to private use."""
CLOCKS = ("strftime_now",)
PLAIN = ("u", "su", "uau", "suau", "uauau", "suauau", "uauauau")
WITH_CALLS = ("uct", "uctau", "uctt", "uctct", "suct", "suctau", "uauct", "uctauct", "uctauau")
WITH_WORDS = ("ubt", "subt", "ubtau", "ubtbt", "uctbt", "uaubt")
"""Shapes of conversations: system, user, assistant, call of a tool, both an answer and a call, tool's result."""
KINDS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


class Context(NamedTuple):
    """Where a literal stands. `kind` is that of the text behind it; "end" is where the model begins to write."""

    before: str
    kind: str
    late: bool
    """Whether it belongs to the last question or comes after it."""
    tools: bool


@dataclass(frozen=True)
class Structure:
    """What a template writes around texts."""

    literals: Mapping[Context, str]
    system_late: bool = False
    """Whether the system message is written before the last question."""
    between_name_and_arguments: str | None = None
    """None for a template that writes no calls, or in a form that Go cannot write."""
    between_calls: str = ""
    tool_as: str | None = None
    """Whether a tool is described by the `whole` object or by its `function`; None if not at all."""
    between_tools: str = ""
    untold: tuple[str, ...] = ()
    """Why tools cannot be used, for a template that knows them."""

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(context.kind for context in self.literals)


@dataclass
class _Element:
    """A text of a conversation, or calls, as the words that must appear in this order."""

    kind: str
    late: bool
    words: list[str]


@dataclass
class _Notes:
    literals: dict[Context, str] = field(default_factory=dict)
    mids: set[str] = field(default_factory=set)
    seps: set[str] = field(default_factory=set)


def probe(template: ChatTemplate) -> Structure:
    """The structure of a template. GoTemplateError names what a Go template cannot express."""
    if clock := next(
        (name for source in template.facts.sources.values() for name in CLOCKS if name in names(source)), ""
    ):
        raise GoTemplateError(
            f"the chat template uses the date ({clock}), which Ollama's templates write in one other form only."
        )
    if _text(template, "u", 0) is None:
        raise GoTemplateError("the chat template refuses a single question.")
    notes = _Notes()
    system_late = _system_is_late(template)
    for shape in PLAIN:
        _note(template, shape, False, notes, system_late)
    without = Structure(notes.literals, system_late)
    try:
        return _with_tools(template, without)
    except GoTemplateError as error:
        return replace(without, untold=(str(error).rstrip("."),))


def _with_tools(template: ChatTemplate, without: Structure) -> Structure:
    """The structure with tools and calls; the same for a template that does not know them."""
    text = _text(template, "u", 2)
    if text is None or _tool(1)["function"]["name"] not in text:
        return without
    as_what, between = _tool_form(text)
    own, system_late = _Notes(dict(without.literals)), without.system_late
    for shape in (*PLAIN, *WITH_CALLS):
        _note(template, shape, True, own, system_late)
    _note(template, "udtt", True, own, system_late)
    if len(own.mids) != 1 or len(own.seps) > 1:
        raise GoTemplateError("it writes a call of a tool in a form of its own")
    spoken = _Notes(dict(own.literals), set(own.mids), set(own.seps))
    try:
        for shape in WITH_WORDS:
            _note(template, shape, True, spoken, system_late)
    except GoTemplateError:  # calls without an answer before them can still be written
        spoken = own
    return replace(
        without, literals=spoken.literals, tool_as=as_what, between_tools=between,
        between_name_and_arguments=next(iter(own.mids)), between_calls=next(iter(spoken.seps), ""),
    )  # fmt: skip


def turn(kind: str) -> str:
    """A turn of this kind, for messages."""
    named = {"said": "an answer before a call", "calls": "a call", "assistant": "an assistant turn"}
    return named.get(kind, f"a {kind} turn")


def _tool(number: int) -> dict[str, Any]:
    described = {"type": "string", "description": f"Xq{number}property"}
    parameters = {"type": "object", "properties": {"aa": described, "bb": described}, "required": ["aa"]}
    function = {"name": f"Xq{number}tool", "description": f"Xq{number}purpose", "parameters": parameters}
    return {"type": "function", "function": function}


def _tool_form(text: str) -> tuple[str, str]:
    """How tools are described, and what stands between two descriptions."""
    for as_what in ("whole", "function"):
        first, second = (described(_tool(number), as_what) for number in (1, 2))
        if text.count(first) == 1 == text.count(second) and text.index(first) < text.index(second):
            return as_what, text[text.index(first) + len(first) : text.index(second)]
    raise GoTemplateError("it describes a tool in a form of its own, not as JSON on one line")


def described(tool: Mapping[str, Any], as_what: str) -> str:
    """The description of a tool as chat templates write it."""
    return json.dumps(tool if as_what == "whole" else tool["function"], ensure_ascii=False)


def _call(number: int, which: int) -> ToolCall:
    return ToolCall(f"Xq{number}called{which}", {"aa": f"Xq{number}first{which}", "bb": f"Xq{number}second{which}"})


def _conversation(shape: str) -> tuple[list[Message], list[_Element]]:
    """The messages of a shape, and what should appear of them, in order."""
    messages, elements = [], []
    question = shape.rfind("u")
    for number, letter in enumerate(shape):
        word, late = f"Xq{number}word", number >= question
        calls = tuple(_call(number, which) for which in range({"c": 1, "b": 1, "d": 2}.get(letter, 0)))
        content = "" if letter in "cd" else word
        messages.append(Message(KINDS.get(letter, "assistant"), content, tool_calls=calls))  # type: ignore[arg-type]
        if content:
            elements.append(_Element("said" if letter == "b" else KINDS[letter], late, [word]))
        if calls:
            words = [part for call in calls for part in (call.name, json.dumps(call.arguments))]
            elements.append(_Element("calls", late, words))
    return messages, elements


def _text(template: ChatTemplate, shape: str, tools: int) -> str | None:
    """The rendered prompt, or None if the template refuses it."""
    try:
        return template.text(_conversation(shape)[0], [_tool(one + 1) for one in range(tools)], answer_next=True)
    except TemplateError:
        return None


def _system_is_late(template: ChatTemplate) -> bool:
    text = _text(template, "suau", 0)
    places = [text.find(f"Xq{number}word") for number in range(4)] if text else []
    return bool(places) and places[1] < places[2] < places[0] < places[3]


def ordered(elements: Sequence[Any], system_late: bool) -> list[Any]:
    """The elements as the template writes them: a late system message stands before the last question."""
    if not system_late:
        return list(elements)
    first = [one for one in elements if one.kind == "system"]
    rest = [one for one in elements if one.kind != "system"]
    place = max(index for index, one in enumerate(rest) if one.kind == "user")
    for one in first:
        one.late = True
    return [*rest[:place], *first, *rest[place:]]


def _note(template: ChatTemplate, shape: str, tools: bool, notes: _Notes, system_late: bool) -> None:
    """Add the literals of a conversation. Shapes that the template refuses in training too are left out."""
    text = _text(template, shape, 2 if tools else 0)
    if text is None:
        return
    elements = ordered(_conversation(shape)[1], system_late)
    if elements[0].kind == "system" and elements[0].words[0] not in text:
        return  # a template without a place for system messages; training refuses such rows
    if tools:
        text = _with_placeholder(text)
    position, before = 0, ""
    for element in elements:
        for number, word in enumerate(element.words):
            if text.count(word) != 1 or (place := text.index(word)) < position:
                raise GoTemplateError(f"it repeats, changes, moves or leaves out the text of {turn(element.kind)}")
            literal, position = text[position:place], place + len(word)
            if number == 0:
                _add(notes, Context(before, element.kind, element.late, tools), literal)
            else:
                (notes.mids if number % 2 else notes.seps).add(literal)
        before = element.kind
    _add(notes, Context(before, "end", True, tools), text[position:])


def _with_placeholder(text: str) -> str:
    for as_what in ("whole", "function"):
        first, second = (described(_tool(number), as_what) for number in (1, 2))
        if text.count(first) == 1 == text.count(second):
            return text[: text.index(first)] + TOOLS + text[text.index(second) + len(second) :]
    raise GoTemplateError("it does not describe the tools in every conversation")


def _add(notes: _Notes, context: Context, literal: str) -> None:
    if "Xq" in literal:
        raise GoTemplateError(f"before {turn(context.kind)} it writes a name or a text once more")
    if notes.literals.setdefault(context, literal) != literal:
        raise GoTemplateError(
            f"what it writes before {'the answer' if context.kind == 'end' else turn(context.kind)} depends on "
            f"more than the turn before it: {notes.literals[context][-40:]!r} or {literal[-40:]!r}"
        )
