"""Stop 2: a conversation is rendered and cut where "learned" changes. Example in, Segments out. Next: tokens.py.

The text is the model's own chat template's, to the letter: segments joined are what the template renders. Learned
is each answer with the end token after it, and nothing else. Where an answer begins is found by rendering the
conversation up to it, which is right only if that rendering is the beginning of the whole; a template for which it
is not (one that rewrites earlier turns) is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rankwise.data.example import Example, Message
from rankwise.errors import TemplateError


@dataclass(frozen=True)
class Segment:
    text: str
    learned: bool


class Template(Protocol):
    """How a model's conversations are written."""

    @property
    def end_tokens(self) -> Sequence[str]:
        """The texts of the tokens that end an answer."""
        ...

    def text(self, messages: Sequence[Message], *, answer_next: bool = False) -> str:
        """The conversation; with `answer_next`, up to where the model is to speak."""
        ...


def render(example: Example, template: Template) -> list[Segment]:
    try:
        return _cut(example, template)
    except TemplateError as error:
        raise TemplateError(f"{example.where}: {error}") from None


def _cut(example: Example, template: Template) -> list[Segment]:
    whole = template.text(example.messages)
    segments: list[Segment] = []
    position = 0
    for index, message in enumerate(example.messages):
        if message.role != "assistant":
            continue
        before = template.text(example.messages[:index], answer_next=True)
        after = template.text(example.messages[: index + 1])
        stable = after.startswith(before) and whole.startswith(before) and len(before) >= position
        end = len(before) + _learned_length(after[len(before) :], message.content, template.end_tokens) if stable else 0
        if not stable or not whole.startswith(after[:end]):
            raise TemplateError(
                f"the model's chat template writes turn {index + 1} differently inside the whole "
                "conversation than up to that turn, so the answer cannot be told from what was given. "
                "Split the conversation into rows with one answer each."
            )
        segments += [Segment(whole[position : len(before)], False), Segment(whole[len(before) : end], True)]
        position = end
    return [segment for segment in (*segments, Segment(whole[position:], False)) if segment.text]


def _learned_length(rendered: str, answer: str, end_tokens: Sequence[str]) -> int:
    """Length of the answer and its end token in what the template wrote for this turn."""
    start = rendered.find(answer.strip())
    if start < 0 or rendered[:start].strip():
        raise TemplateError(
            f"the chat template changes the answer {answer.strip()[:40]!r}: it writes {rendered[:60]!r}."
        )
    tail_start = start + len(answer.strip())
    tail = rendered[tail_start:]
    ends = [(tail.find(token), token) for token in end_tokens if token and token in tail]
    if not ends:
        raise TemplateError(
            "the chat template puts no end token after the answer "
            f"(looked for {', '.join(map(repr, end_tokens))} in {tail[:40]!r}). "
            "Trained like this, the model would never learn to stop."
        )
    place, token = min(ends)
    if tail[:place].strip():
        raise TemplateError(f"the chat template adds {tail[:place].strip()[:40]!r} to the answer before its end token.")
    return tail_start + place + len(token)
