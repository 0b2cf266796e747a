"""Stop 1: a raw mapping is checked once and becomes an Example (or several). Next: templates.py.

The form of a file is found by the keys of its first row, and every row must have it. A row that fits its form badly
is an error that names its line, its keys and the keys that were wanted. What a row holds and cannot be followed is
refused, never lost in silence. The turns of a conversation are read in turns.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rankwise.config.base import shown
from rankwise.data.columns import Row, answered, renamed
from rankwise.data.fields import ABOUT, SYSTEM, context_of, refuse_rivals, require, system_of
from rankwise.data.proposals import as_text, no_form
from rankwise.data.turns import (
    read_tools,
    read_turns,
    refuse_unheard,
    text_of,
    texts_of,
    turns_of_history,
    turns_of_prompt,
)
from rankwise.errors import DataError, some
from rankwise.text.example import Example, Message

ASKED, ANSWERED = ("prompt", "question"), ("completion", "response", "answer", "answers")
CLASSIFIED = (
    ("text",), ("sentence1", "sentence2"), ("question", "sentence"), ("premise", "hypothesis"),
    ("question1", "question2"), ("sentence",),
)  # fmt: skip
"""What stands beside a label: a text, or two that are compared. The names are ours and those of GLUE."""


@dataclass(frozen=True)
class How:
    """What is said of rows beside their form: names of labels, and whether each of several answers is a row."""

    labels: tuple[str, ...]
    each: bool
    renamed: bool
    """Whether the row's names are ours and not the file's."""


def form_of(row: Row) -> str | None:
    return next((form for form, fits in SIGNS.items() if fits(row)), None)


def find_format(row: Row, where: str) -> str:
    """The first row's keys decide for the whole file."""
    form = form_of(row)
    if form is not None:
        return form
    raise DataError(no_form(row, where))


def parse_row(
    row: Row,
    form: str,
    where: str,
    *,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: tuple[str, ...] = (),
    alternatives: Literal["first", "each"] = "first",
) -> list[Example]:
    """Mostly one example; a Self-Instruct task gives one for each of its instances, and `each` one for each answer."""
    row = renamed(row, columns or {}, where)
    refuse_unheard(row, where, "row", ("images", "image", "audios", "audio", "videos", "video"))
    refuse_rivals(row, where)
    if form in ("messages", "sharegpt", "prompt") and isinstance(row.get("label"), bool):
        raise DataError(f"{where}: the label is {row['label']}; rows of preferences cannot be trained on yet.")
    how = How(labels, alternatives == "each", bool(columns))
    return [_with_system(example, system) for example in PARSERS[form](row, where, how)]


def refuse_other_form(row: Row, form: str, where: str, *, given: bool) -> None:
    """A row that is whole and of another form than its file's; if that was given, a row that fits it is of it.

    What fits no form is told by parse_row, in more words.
    """
    other = form if given and SIGNS[form](row) else form_of(row)
    if other is not None and other != form:
        raise DataError(
            f"{where}: is a row of the {other} form in a file of the {form} form ({some(map(shown, row), 8)})."
        )


def _with_system(example: Example, system: str | None) -> Example:
    if system is None or example.text is not None or example.messages[0].role == "system":
        return example
    return replace(example, messages=(Message("system", system), *example.messages))


def _messages(row: Row, where: str, how: How) -> list[Example]:
    return [_conversation(row, where, "messages")]


def _sharegpt(row: Row, where: str, how: How) -> list[Example]:
    return [_conversation(row, where, "conversations", skip_first_answer=True)]


def _conversation(row: Row, where: str, key: str, *, skip_first_answer: bool = False) -> Example:
    require(row, where, key, key)
    refuse_unheard(row, where, "row", ("functions", "function_call"))
    turns = read_turns(row[key], where, key, skip_first_answer=skip_first_answer)
    return Example(_after_system(row, turns, where), where, read_tools(row.get("tools"), where))


def _after_system(row: Row, turns: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    system, first = system_of(row, where), turns[0]
    if not system or (first.role == "system" and first.content == system):
        return turns
    if first.role == "system":
        raise DataError(
            f"{where}: its first turn is the system message {shown(first.content)}, and beside the turns stands "
            f"another, {shown(system)}; leave out one."
        )
    return (Message("system", system), *turns)


def _prompt(row: Row, where: str, how: How) -> list[Example]:
    asked = next((key for key in ASKED if key in row), ASKED[0])
    answers_in = next((key for key in ANSWERED if key in row), ANSWERED[0])
    require(row, where, "prompt", asked, answers_in)
    refuse_unheard(row, where, "row", ("history",))
    answers = _answers(row, answers_in, where)
    if isinstance(row[asked], list) or (answers is None and isinstance(row[answers_in], list)):
        refuse_unheard(row, where, "row", ABOUT)
        learned = row[answers_in] if answers is None else answers[0]
        turns = _after_system(row, turns_of_prompt(row[asked], learned, where), where)
        tools = read_tools(row.get("tools"), where)
        if answers is not None:
            return answered(turns[:-1], answers, where, each=how.each, tools=tools)
        return [Example(turns, where, tools)]
    refuse_unheard(row, where, "row", ("tools",))
    question, answer = text_of(row[asked], where, asked), row[answers_in]
    if isinstance(answer, int | float) and not how.renamed:
        hint = as_text(row, asked, answers_in)
        raise DataError(f"{where}: the {answers_in} is {shown(answer)}; text is wanted.{hint}")
    answers = answers or (text_of(answer, where, answers_in),)
    return answered(_given(question, row, where), answers, where, each=how.each)


def _answers(row: Row, key: str, where: str) -> tuple[str, ...] | None:
    """Of a list of texts all; of one text beside a list under the name answers, that text and the list's."""
    several = texts_of(row[key], where, key)
    if key == "answers" or not row.get("answers") or not isinstance(row[key], str):
        return several
    others = texts_of(row["answers"], where, "answers")
    if others is None:
        raise DataError(f'{where}: "answers" is {shown(row["answers"])}; a list of texts is wanted.')
    return tuple(dict.fromkeys((text_of(row[key], where, key), *others)))


def _alpaca(row: Row, where: str, how: How) -> list[Example]:
    require(row, where, "alpaca", "instruction", "output")
    return _instruction(row, where, "output", how)


def _dolly(row: Row, where: str, how: How) -> list[Example]:
    require(row, where, "dolly", "instruction", "response")
    return _instruction(row, where, "response", how)


def _instruction(row: Row, where: str, answers_in: str, how: How) -> list[Example]:
    given = _given(text_of(row["instruction"], where, "instruction"), row, where)
    refuse_unheard(row, where, "row", ("tools",))
    *first, asked = given
    earlier = turns_of_history(row.get("history"), where)
    answers = texts_of(row[answers_in], where, answers_in) or (text_of(row[answers_in], where, answers_in),)
    return answered((*first, *earlier, asked), answers, where, each=how.each)


def _self_instruct(row: Row, where: str, how: How) -> list[Example]:
    require(row, where, "self-instruct", "instruction", "instances")
    refuse_unheard(row, where, "row", (*ABOUT, *SYSTEM, "history", "tools"))
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not all(isinstance(item, dict) for item in instances):
        raise DataError(f'{where}: "instances" is {shown(instances)}; a list of input and output is wanted.')
    flat = [{"instruction": row["instruction"], **instance} for instance in instances]
    return [example for item in flat for example in _alpaca(item, where, how)]


def _text(row: Row, where: str, how: How) -> list[Example]:
    require(row, where, "text", "text")
    return [Example((), where, text=text_of(row["text"], where, "text"))]


def _classification(row: Row, where: str, how: How) -> list[Example]:
    first, *second = classified(row) or CLASSIFIED[0]
    require(row, where, "classification", first, "label")
    beside = second[0] if second else "text_pair"
    pair = "" if row.get(beside) is None else text_of(row[beside], where, beside)
    asked, label = text_of(row[first], where, first), _label(row["label"], how.labels, where)
    return answered((*_system(row, where), Message("user", asked, pair)), (label,), where, each=False)


def classified(row: Row) -> tuple[str, ...] | None:
    """Which of the names for what a label is given to the row has."""
    return next((names for names in CLASSIFIED if all(name in row for name in names)), None)


def _label(value: Any, labels: tuple[str, ...], where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: the label is {shown(value)}; a whole number or a name is wanted.")
    if not labels:
        return text_of(value if isinstance(value, str) else shown(value), where, "label")
    short = isinstance(value, str) and len(value) < 10 and value.isdecimal()
    number = int(value) if isinstance(value, int) or short else None
    if number is not None and 0 <= number < len(labels):
        return labels[number]
    if value in labels:
        return str(value)
    raise DataError(f"{where}: the label {shown(value)} is none of the {len(labels)} names in data.labels.")


def _tree(row: Row, where: str, how: How) -> list[Example]:
    """The best-ranked path through a tree of OpenAssistant messages, as long as it ends with an answer."""
    require(row, where, "oasst-trees", "prompt")
    node, path = row["prompt"], []
    while isinstance(node, dict):
        path.append({"role": {"prompter": "user"}.get(str(node.get("role")), node.get("role")),
                     "content": node.get("text")})  # fmt: skip
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise DataError(f"{where}: the replies are {shown(replies)}; a list of messages is wanted.")
        replies = [reply for reply in replies if isinstance(reply, dict)]
        node = min(replies, key=_rank, default=None)
    while path and path[-1]["role"] == "user":
        path.pop()
    if not path:
        raise DataError(f"{where}: no message of the tree is an answer.")
    return [Example(read_turns(path, where, "prompt"), where)]


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int) else float("inf")


def _given(asked: str, row: Row, where: str) -> tuple[Message, ...]:
    """A question with what it is about, after the row's system message."""
    context = context_of(row, where)
    return (*_system(row, where), Message("user", asked, context))


def _system(row: Row, where: str) -> tuple[Message, ...]:
    said = system_of(row, where)
    return (Message("system", said),) if said else ()


SIGNS: dict[str, Callable[[Row], bool]] = {
    "messages": lambda row: "messages" in row,
    "sharegpt": lambda row: "conversations" in row,
    "oasst-trees": lambda row: isinstance(row.get("prompt"), dict) and "replies" in row["prompt"],
    "self-instruct": lambda row: "instruction" in row and "instances" in row,
    "alpaca": lambda row: "instruction" in row and "output" in row,
    "dolly": lambda row: "instruction" in row and "response" in row,
    "prompt": lambda row: any(key in row for key in ASKED) and any(key in row for key in ANSWERED),
    "classification": lambda row: "label" in row and classified(row) is not None,
    "text": lambda row: "text" in row,
}
_SYSTEM = frozenset(SYSTEM)
_TALK = _SYSTEM | {"tools"}
_INSTRUCTION = _SYSTEM | {"instruction", "output", "response", "history", *ABOUT}
USED = {
    "messages": _TALK | {"messages"},
    "sharegpt": _TALK | {"conversations"},
    "oasst-trees": frozenset({"prompt"}),
    "self-instruct": frozenset({"instruction", "instances"}),
    "alpaca": _INSTRUCTION,
    "dolly": _INSTRUCTION,
    "prompt": _TALK | {*ASKED, *ANSWERED, *ABOUT},
    "text": frozenset({"text"}),
}
"""The fields that a row of each form is made of."""


def used_fields(row: Row, form: str) -> frozenset[str]:
    if form != "classification":
        return USED[form]
    names = classified(row) or CLASSIFIED[0]
    return _SYSTEM | {*names, "label"} | ({"text_pair"} if len(names) == 1 else set())


PARSERS: dict[str, Callable[[Row, str, How], list[Example]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "oasst-trees": _tree,
    "self-instruct": _self_instruct,
    "alpaca": _alpaca,
    "dolly": _dolly,
    "prompt": _prompt,
    "classification": _classification,
    "text": _text,
}
