"""Whether an engine's template gives a model the same token ids as the chat template that it was trained with.

Thirty conversations, with and without a system message, of one to four questions, in several scripts, with white space
at the edges, and with tools where the template knows them, are written both ways up to each answer. They must have the
same ids after the model's tokenizer, and the answer must end where training taught the model to end. A conversation
that the other template language cannot express is named, and is never counted as the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.errors import TemplateError
from rankwise.exporting.parity_conversations import Conversation, conversations
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import Example
from rankwise.text.template_probe import shown_of
from rankwise.text.tokenize import prompt_ids

COUNT = 30
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

    def summary(self) -> dict[str, Any]:
        """For `rankwise export --json`."""
        facts = {"conversations": self.conversations, "same": self.same, "refused": list(self.refused)}
        return facts | {"in": self.carrier} | ({"different": list(self.different)} if self.different else {})


def template_parity(
    template: ChatTemplate, render: Renderer, *, adds_start: bool, stops: Sequence[str] | None = None,
    reasons: Callable[[Conversation], list[str]] = lambda _: [], carrier: str | None = None,
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


def _knows(template: ChatTemplate, one: Conversation) -> bool:
    """Whether the chat template itself shows all of the conversation, so that a row like it can be trained on."""
    messages = tuple(replace(message, content=message.content or "-") if message.role == "system" else message
                     for message in one.messages)  # fmt: skip
    try:
        return not shown_of(Example(messages, one.name, tools=one.tools), template).missing
    except TemplateError:
        return False


def _difference(template: ChatTemplate, one: Conversation, start: str, render: Renderer) -> str | None:
    trained = template.text(one.messages, one.tools, answer_next=True)
    try:
        served = start + render(one.messages, one.tools)
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
