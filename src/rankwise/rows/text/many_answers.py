"""Where the prompts end in a conversation of very many answers, in a time that grows with its length, not its square.

To render the conversation up to each of n answers is n times the work. So the whole is rendered once more with a word
of its own in place of each answer. The text between those words must be the text between the answers, to the letter,
which gives the position of every answer. That the text before an answer is the prompt at inference is then compared for
COMPARED answers, the first, the last and those evenly between, and must be so for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rankwise.rows.text.example import Message
from rankwise.rows.text.template_probe import Span
from rankwise.rows.text.written import Written

COMPARED = 128
"""Answers whose prompts are rendered; a conversation of no more than these is compared as a whole."""


class Writes(Protocol):
    """The part of a template that this module needs."""

    def marked(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> tuple[str, list[Span]]: ...

    def guarded(self, content: str) -> str: ...


def answers_of(messages: Sequence[Message]) -> list[int]:
    """The numbers of the messages that are answers."""
    return [index for index, message in enumerate(messages) if message.role == "assistant"]


def compared(answers: Sequence[int]) -> list[int]:
    """The answers whose prompts are rendered."""
    if len(answers) <= COMPARED:
        return list(answers)
    edge, between = COMPARED // 4, COMPARED // 2
    step = (len(answers) - 2 * edge) / between
    middle = [answers[edge + int(step * number)] for number in range(between)]
    return [*answers[:edge], *middle, *answers[-edge:]]


def prompt_ends(written: Written, tools: Sequence[Any], template: Writes) -> Mapping[int, int] | None:
    """For each answer the number of characters before which it is asked for; None where that needs each prompt."""
    answers, whole = answers_of(written.messages), written.whole
    begins = _begins(written.messages, answers, whole, tools, template)
    if begins is None:
        return None
    spaces: set[str] = set()
    for index in compared(answers):
        prompt = written.text(index, answer_next=True)
        if not whole.startswith(prompt) or len(prompt) > begins[index]:
            return None
        spaces.add(whole[len(prompt) : begins[index]])
    (space, *others) = spaces
    if others or space.strip():
        return None
    ends = {index: begin - len(space) for index, begin in begins.items()}
    return ends if all(whole.startswith(space, end) for end in ends.values()) else None


def _begins(
    messages: Sequence[Message], answers: Sequence[int], whole: str, tools: Sequence[Any], template: Writes
) -> dict[int, int] | None:
    """The position of each answer in the whole text."""
    if not all(messages[index].content.strip() for index in answers):
        return None
    words = {index: f"answer-like-no-other-{index}." for index in answers}
    shown = [replace(message, content=words[index]) if index in words else message
             for index, message in enumerate(messages)]  # fmt: skip
    text = template.marked(shown, tools)[0]
    gaps: list[str] = []
    position = 0
    for word in words.values():
        begin = text.find(word, position)
        if begin < 0:
            return None
        gaps.append(text[position:begin])
        position = begin + len(word)
    last = text[position:]
    begins: dict[int, int] = {}
    position = 0
    for index, gap, after in zip(answers, gaps, [*gaps[1:], last], strict=True):
        content = template.guarded(messages[index].content)
        position += len(gap)
        forms = (content, content.strip())
        form = next((one for one in forms if whole.startswith(gap + one + after, position - len(gap))), None)
        if form is None:
            return None
        begins[index] = position + len(form) - len(form.lstrip())
        position += len(form)
    return begins if position + len(last) == len(whole) else None
