"""Rows with two answers to one prompt, of which one was preferred.

    {"prompt": text, "chosen": text, "rejected": text}
    {"prompt": [turns], "chosen": [turns], "rejected": [turns]}     as TRL writes it; the answers may be texts
    {"chosen": [turns], "rejected": [turns]}                        both begin with the turns of the prompt
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}       the same as one text, as hh-rlhf writes it

What both answers must share is one prompt, and the two must differ. Anything else is refused, because nothing can be
learned from a comparison of answers to two different questions, nor from one of an answer with itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError
from rankwise.rows.forms.columns import Row, require, system_of
from rankwise.rows.forms.turns import ROLES, read_tools, read_turns, refuse_unsupported, text_of, turns_of_prompt
from rankwise.rows.text.example import Example, Message
from rankwise.system.foreign_json import loads

CHOSEN, REJECTED = "chosen", "rejected"
PROMPTS = ("prompt", "question")
FIELDS_OF_PAIRS = frozenset({CHOSEN, REJECTED, *PROMPTS, "system", "system_prompt", "tools"})

Turns = tuple[Message, ...]
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def is_pair(row: Row) -> bool:
    return CHOSEN in row and REJECTED in row


def pair_example(row: Row, where: str) -> Example:
    """DataError where the row is no pair."""
    require(row, where, "preference", CHOSEN, REJECTED)
    refuse_unsupported(row, where, "row", ("history", "input", "context"))
    answers = [_turns_or_text(row[name], where, name) for name in (CHOSEN, REJECTED)]
    if isinstance(answers[0], str) != isinstance(answers[1], str):
        raise DataError(f"{where}: one of chosen and rejected is a text and the other a list of turns.")
    prompt = _prompt(row, where)
    if all(map(_is_whole, answers)):
        chosen, rejected = _of_conversations(answers, prompt, where)
    elif any(map(_is_whole, answers)):
        raise DataError(f"{where}: one of chosen and rejected begins with a question and the other with an answer.")
    elif prompt is None:
        raise DataError(
            f'{where}: has no prompt. Write it in the column "prompt", or write chosen and rejected as lists of turns '
            "that begin with it."
        )
    else:
        chosen, rejected = (turns_of_prompt(prompt, answer, where) for answer in answers)
    if _alike(chosen, rejected):
        raise DataError(f"{where}: chosen and rejected are the same answer, so nothing can be learned from the pair.")
    first = _system(row, chosen, where)
    return Example((*first, *chosen), where, read_tools(row.get("tools"), where), rejected=(*first, *rejected))


def _prompt(row: Row, where: str) -> str | list[Any] | None:
    name = next((name for name in PROMPTS if row.get(name) is not None), None)
    return None if name is None else _turns_or_text(row[name], where, name)


def _turns_or_text(value: Any, where: str, name: str) -> str | list[Any]:
    """A cell of a table holds turns as their JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = loads(value)
        except (ValueError, RecursionError):
            return text_of(value, where, name)
    if isinstance(value, list) and value:
        return value
    if isinstance(value, list):
        raise DataError(f"{where}: the {name} is empty.")
    if not isinstance(value, str):
        raise DataError(f"{where}: the {name} is {shown(value)}; a text or a list of turns is expected.")
    return _spoken(text_of(value, where, name))


def _spoken(text: str) -> str | list[Any]:
    """The turns of a dialogue in one text. A prompt may end where the assistant is to speak."""
    before, *parts = _SPEAKER.split(text)
    if before.strip() or parts[:1] != ["Human"]:
        return text
    spoken = zip(parts[::2], parts[1::2], strict=True)
    turns = [{"role": speaker.lower(), "content": words.strip()} for speaker, words in spoken]
    return turns if turns[-1]["content"] else turns[:-1]


def _is_whole(answer: str | list[Any]) -> bool:
    """Whether turns begin with a question, and so hold the prompt too."""
    first = answer[0] if isinstance(answer, list) else None
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and ROLES.get(role) in ("system", "user")


def _of_conversations(answers: Sequence[Any], prompt: str | list[Any] | None, where: str) -> tuple[Turns, Turns]:
    """Both conversations, whose common turns are the prompt and not in the loss."""
    chosen, rejected = (
        read_turns(answer, where, name) for answer, name in zip(answers, (CHOSEN, REJECTED), strict=True)
    )
    pairs = zip(chosen, rejected, strict=False)
    shared = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if shared is None and len(chosen) != len(rejected):
        raise DataError(f"{where}: one of chosen and rejected is the beginning of the other, not another answer.")
    shared = len(chosen) - 1 if shared is None else shared
    if "assistant" not in (chosen[shared].role, rejected[shared].role) or chosen[shared].role != rejected[shared].role:
        raise DataError(
            f"{where}: the prompts of chosen and rejected differ: turn {shared + 1} is {_turn(chosen[shared])} in one "
            f"and {_turn(rejected[shared])} in the other."
        )
    _check_prompt(prompt, chosen[:shared], where)
    given = tuple(replace(turn, learned=False) for turn in chosen[:shared])
    return (*given, *chosen[shared:]), (*given, *rejected[shared:])


def _turn(turn: Message) -> str:
    return f"{turn.role}: {shown(turn.content)}"


def _check_prompt(prompt: str | list[Any] | None, context: Turns, where: str) -> None:
    """Refuse a prompt beside whole conversations that do not begin with it."""
    if prompt is None:
        return
    if isinstance(prompt, str):
        same = any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in context)
    else:
        texts = [turn.get("content", turn.get("value")) if isinstance(turn, dict) else None for turn in prompt]
        same = texts == [turn.content for turn in context]
    if not same:
        raise DataError(f"{where}: the prompt is {shown(prompt)}, but chosen and rejected begin with another one.")


def _alike(chosen: Turns, rejected: Turns) -> bool:
    """Whether nothing but white space around the turns differs."""
    return [_without_space(turn) for turn in chosen] == [_without_space(turn) for turn in rejected]


def _without_space(turn: Message) -> Message:
    return replace(turn, content=turn.content.strip())


def _system(row: Row, turns: Turns, where: str) -> Turns:
    """The row's system message, where its turns have none."""
    text = system_of(row, where)
    if not text or (turns[0].role == "system" and turns[0].content == text):
        return ()
    if turns[0].role == "system":
        raise DataError(f"{where}: has the system message {shown(text)} and another one in its first turn.")
    return (Message("system", text),)
