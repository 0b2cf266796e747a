"""Reasoning in an answer: what a model writes between <think> and </think> before it answers.

    <think> reasoning </think> answer end       learn: all of it is in the loss
                               answer end       mask: the reasoning is read and is not in the loss

A template may write the tags itself, open them in the prompt, or write an empty thought before an answer that has none.
What a model must write itself after its prompt is what can be learned.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def parted(content: str) -> tuple[str | None, str]:
    """Reasoning and answer of a message; None where it has no reasoning."""
    thought, close, answer = content.partition(CLOSE)
    if not close:
        return None, content
    return thought.strip().removeprefix(OPEN).strip(), answer


def joined(thought: str, answer: str) -> str:
    """A thought and an answer as the content of one message, with the tags that chat templates know."""
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{answer}"


def without_thought(text: str) -> str:
    """What a model answered, without the reasoning before it; all of it where the reasoning did not end."""
    return text.partition(CLOSE)[2].lstrip() if CLOSE in text else text


def may_be_thought(text: str, opened: bool) -> bool:
    """Whether what was written so far may still be reasoning. `opened`: the prompt has the first tag."""
    begun = text.lstrip()
    return CLOSE not in text and (opened or begun.startswith(OPEN) or OPEN.startswith(begun))
