"""What a template of Go in Ollama cannot do with the texts of a conversation, found by trying.

A chat template in Jinja may trim a text, take a part of it or write something else if the text contains a certain
word. Ollama offers no function for texts, so a Go template writes each text as it is. Each text of a conversation is
tried with white space around it, empty, and with every string literal of the Jinja source in it. Calls and descriptions
of tools are compared one by one, because Ollama forgets a part of them and writes JSON in its own order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.errors import TemplateError
from rankwise.exporting.go_json import template_values
from rankwise.exporting.go_template import render
from rankwise.exporting.go_template_probe import Structure, described, turn
from rankwise.exporting.go_template_writer import ARGUMENTS, tool_text
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import BREAK, Message, ToolCall
from rankwise.text.jinja_source import literals

WORD = "Xq0word"
CALL = (ToolCall("Xq3called", {"aa": "Xq4value"}),)
TOOL = {"type": "function", "function": {"name": "Xq3called", "description": "", "parameters": {"type": "object"}}}
BASES: dict[str, tuple[Message, ...]] = {
    "system": (Message("system", WORD), Message("user", "Xq1word")),
    "user": (Message("user", WORD), Message("assistant", "Xq1word"), Message("user", "Xq2word")),
    "assistant": (Message("user", "Xq1word"), Message("assistant", WORD), Message("user", "Xq2word")),
    "tool": (Message("user", "Xq1word"), Message("assistant", "", tool_calls=CALL), Message("tool", WORD)),
}
"""For each role a conversation in which one text of this role is varied."""
EDGES = (" {}", "{} ", "\n{}", "{}\n")
AROUND = ("a{}b", "{}b", "a{}")


@dataclass(frozen=True)
class Limits:
    """The roles whose white space at the edges or whose empty text a template changes, and the words that it reads."""

    edges: frozenset[str]
    empty: frozenset[str]
    words: Mapping[str, tuple[str, ...]]
    context: bool
    """Whether the template has a place of its own for the context of a question."""

    def of(self, messages: Sequence[Message], tools: Sequence[Any], structure: Structure) -> list[str]:
        """Why this conversation cannot be written by a Go template; empty if it can."""
        if structure.untold and (tools or any(message.tool_calls for message in messages)):
            return [f"tools: {why}" for why in structure.untold]
        reasons: list[str] = []
        for message in messages:
            role, content = message.role, message.content
            if role in self.edges and content != content.strip():
                reasons.append(f"white space around the text of {turn(role)}, which the chat template changes")
            if role in self.empty and not content and not message.tool_calls:
                reasons.append(f"an empty text of {turn(role)}, which the chat template writes in another way")
            reasons += [
                f"the text {word!r} in {turn(role)}, for which the chat template writes something else"
                for word in self.words.get(role, ())
                if word in content
            ]
            if message.tool_calls and message.content and "said" not in structure.kinds:
                reasons.append("an answer before a call of a tool, which the chat template writes in a form of its own")
            reasons += [reason for call in message.tool_calls for reason in call_reasons(call)]
        for tool in tools:
            reasons += tool_reasons(tool, structure.tool_as or "whole")
        return list(dict.fromkeys(reasons))

    def lines(self) -> list[str]:
        """Each limit once, whatever conversation it concerns."""
        said = [f"white space around the text of {turn(role)}, which the chat template changes" for role in self.edges]
        said += [f"an empty text of {turn(role)}, which the chat template writes in another way" for role in self.empty]
        for role, words in self.words.items():
            said += [
                f"the text {', '.join(map(repr, words))} in {turn(role)}, which changes what the chat template writes"
            ]
        said += [
            "the context of a question apart from its text, for which the chat template has a place"
        ] * self.context
        return sorted(said)


def limits_of(template: ChatTemplate, structure: Structure) -> Limits:
    """Try each role that a template knows."""
    edges, empty, words = set(), set(), {}
    parts = dict.fromkeys(
        text for source in template.facts.sources.values() for text in literals(source) if len(text.strip()) > 1
    )
    for role in (role for role in BASES if role in structure.kinds):
        plain = _written(template, role, WORD)
        if plain is None or WORD not in plain:
            continue
        if any(_changes(template, role, plain, form.format(WORD)) for form in EDGES):
            edges.add(role)
        if _changes(template, role, plain, ""):
            empty.add(role)
        read = [
            part.strip()
            for part in parts
            if any(_changes(template, role, plain, form.replace("{}", part.strip())) for form in AROUND)
        ]
        if read:
            words[role] = tuple(dict.fromkeys(read))
    return Limits(frozenset(edges), frozenset(empty), words, _has_context(template))


def _has_context(template: ChatTemplate) -> bool:
    apart, whole = Message("user", WORD, "Xq1word"), Message("user", f"{WORD}\n\nXq1word")
    try:
        return template.text([apart], answer_next=True) != template.text([whole], answer_next=True)
    except TemplateError:
        return False


def _written(template: ChatTemplate, role: str, content: str) -> str | None:
    messages = [replace(one, content=content) if one.content == WORD else one for one in BASES[role]]
    try:
        return template.text(messages, [TOOL] if role == "tool" else [], answer_next=True)
    except TemplateError:
        return None


def _changes(template: ChatTemplate, role: str, plain: str, content: str) -> bool:
    """Whether the template writes a text in another way than as it is. Control tokens are broken up in all texts."""
    expected = plain.replace(WORD, template.guarded(content))
    written = _written(template, role, content)
    return written is None or written.replace(BREAK, "") != expected.replace(BREAK, "")


def call_reasons(call: ToolCall) -> list[str]:
    """Why the arguments of a call cannot be written as in training."""
    message = replace(Message("assistant", ""), tool_calls=(call,))
    (value,) = template_values([message], [])["Messages"][0]["ToolCalls"]
    wanted = described({"function": call.arguments}, "function")
    if render(ARGUMENTS, value) == wanted:
        return []
    return [f"the arguments {wanted[:60]} of a call: Ollama writes {render(ARGUMENTS, value)[:60]}"]


def tool_reasons(tool: Mapping[str, Any], as_what: str) -> list[str]:
    """Why the description of a tool cannot be written as in training."""
    (value,) = template_values([], [tool])["Tools"]
    wanted, written = described(tool, as_what), render(tool_text(as_what), value)
    if written == wanted:
        return []
    place = next(
        number for number, pair in enumerate(zip(wanted + "\0", written + "\0", strict=False)) if pair[0] != pair[1]
    )
    return [
        f"the description of the tool {tool['function']['name']!r}: at {wanted[max(place - 20, 0) : place + 30]!r} "
        f"Ollama writes {written[max(place - 20, 0) : place + 30]!r}"
    ]
