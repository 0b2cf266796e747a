"""Stop 1: a raw mapping is checked once and becomes an Example (or several). Next: templates.py.

The form of a file is found by the keys of its first row, and every row must have it. A row that fits its form badly
is an error that names its line, its keys and the keys that were wanted. What a row holds and cannot be followed is
refused, never lost in silence. The turns of a conversation are read in turns.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rankwise.data.example import Example, Message
from rankwise.data.turns import read_tools, read_turns, refuse_unheard, text_of, turns_of_history, turns_of_prompt
from rankwise.errors import DataError, did_you_mean, some
from rankwise.spec.spec import shown

Row = dict[str, Any]
RIVALS = (
    ("messages", "conversations"), ("prompt", "question"), ("completion", "response", "answer"), ("output", "response"),
)  # fmt: skip
ASKED, ANSWERED = ("prompt", "question"), ("completion", "response", "answer")
ABOUT, SYSTEM = ("input", "context"), ("system", "system_prompt")  # two names for one thing each
FIELDS = (
    "messages", "conversations", "tools", "system", "system_prompt", "prompt", "question", "completion", "response",
    "answer", "text", "text_pair", "label", "instruction", "input", "output", "history", "context", "instances",
)  # fmt: skip


def form_of(row: Row) -> str | None:
    return next((form for form, fits in SIGNS.items() if fits(row)), None)


def find_format(row: Row, where: str) -> str:
    """The first row's keys decide for the whole file."""
    form = form_of(row)
    if form is not None:
        return form
    hint = " Preference pairs (chosen, rejected) cannot be trained on yet." if "chosen" in row else ""
    raise DataError(
        f"{where}: the keys {some(map(shown, row), 8)} are no form of row that is known. Known are messages; "
        "conversations; prompt (or question) with completion, response or answer; instruction with output or "
        "response; input (or context) and system beside each of these; text, with or without label; Self-Instruct "
        f"tasks; OpenAssistant trees. Other names of columns are told by data.columns.{hint}"
    )


def parse_row(
    row: Row,
    form: str,
    where: str,
    *,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: tuple[str, ...] = (),
) -> list[Example]:
    """Mostly one example; a Self-Instruct task gives one for each of its instances."""
    row = renamed(row, columns or {}, where)
    refuse_unheard(row, where, "row", ("images", "image", "audios", "audio", "videos", "video"))
    _refuse_rivals(row, where)
    if form in ("messages", "sharegpt", "prompt") and isinstance(row.get("label"), bool):
        raise DataError(f"{where}: the label is {row['label']}; rows of preferences cannot be trained on yet.")
    return [_with_system(example, system) for example in PARSERS[form](row, where, labels)]


def renamed(row: Row, columns: Mapping[str, str], where: str) -> Row:
    """The row with our names of its columns."""
    if not columns:
        return row
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        near = did_you_mean(missing[0], row)
        raise DataError(f"{where}: has no column {missing[0]!r}; it has {some(map(shown, row), 8)}.{near}")
    taken = set(columns.values())
    kept = {key: value for key, value in row.items() if key not in taken and key not in columns}
    return kept | {ours: row[theirs] for ours, theirs in columns.items()}


def refuse_other_form(row: Row, form: str, where: str, *, given: bool) -> None:
    """A row that is whole and of another form than its file's; if that was given, a row that fits it is of it.

    What fits no form is told by parse_row, in more words.
    """
    other = form if given and SIGNS[form](row) else form_of(row)
    if other is not None and other != form:
        raise DataError(
            f"{where}: is a row of the {other} form in a file of the {form} form ({some(map(shown, row), 8)})."
        )


def _refuse_rivals(row: Row, where: str) -> None:
    for names in RIVALS:
        said = {name: row[name] for name in names if row.get(name)}
        if len({repr(value) for value in said.values()}) > 1:
            raise _two_names(said, where)


def _with_system(example: Example, system: str | None) -> Example:
    if system is None or example.text is not None or example.messages[0].role == "system":
        return example
    return Example((Message("system", system), *example.messages), example.where, example.tools)


def _messages(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    return [_conversation(row, where, "messages")]


def _sharegpt(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    return [_conversation(row, where, "conversations", skip_first_answer=True)]


def _conversation(row: Row, where: str, key: str, *, skip_first_answer: bool = False) -> Example:
    _require(row, where, key, key)
    refuse_unheard(row, where, "row", ("functions", "function_call"))
    turns = read_turns(row[key], where, key, skip_first_answer=skip_first_answer)
    return Example(_after_system(row, turns, where), where, read_tools(row.get("tools"), where))


def _texts(row: Row, where: str, names: tuple[str, ...]) -> dict[str, str]:
    there = (name for name in names if row.get(name) is not None)
    return {name: text_of(row[name], where, name, may_be_empty=True) for name in there}


def _not_blank(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text.strip()}


def _two_names(said: Mapping[str, Any], where: str) -> DataError:
    both = " and ".join(f"{name} {shown(text)}" for name, text in said.items())
    return DataError(f"{where}: has {both}, two names of one thing; leave out one, or choose by data.columns.")


def _context(row: Row, where: str) -> str:
    """What the question is about, to the letter: whether spaces alone count is the template's to say."""
    texts = _texts(row, where, ABOUT)
    said = _not_blank(texts)
    if len(said) > 1:
        raise _two_names(said, where)
    return next(filter(None, (said or texts).values()), "")


def _system(row: Row, where: str) -> str:
    said = _not_blank(_texts(row, where, SYSTEM))
    if len(set(said.values())) > 1:
        raise _two_names(said, where)
    return next(iter(said.values()), "")


def _after_system(row: Row, turns: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    system, first = _system(row, where), turns[0]
    if not system or (first.role == "system" and first.content == system):
        return turns
    if first.role == "system":
        raise DataError(
            f"{where}: its first turn is the system message {shown(first.content)}, and beside the turns stands "
            f"another, {shown(system)}; leave out one."
        )
    return (Message("system", system), *turns)


def _prompt(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    asked = next((key for key in ASKED if key in row), ASKED[0])
    answered = next((key for key in ANSWERED if key in row), ANSWERED[0])
    _require(row, where, "prompt", asked, answered)
    refuse_unheard(row, where, "row", ("history",))
    if isinstance(row[asked], list) or isinstance(row[answered], list):
        refuse_unheard(row, where, "row", ABOUT)
        turns = _after_system(row, turns_of_prompt(row[asked], row[answered], where), where)
        return [Example(turns, where, read_tools(row.get("tools"), where))]
    refuse_unheard(row, where, "row", ("tools",))
    pair = text_of(row[asked], where, asked), text_of(row[answered], where, answered)
    return [_pair(*pair, where, context=_context(row, where), system=_system(row, where))]


def _alpaca(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    _require(row, where, "alpaca", "instruction", "output")
    return [_instruction(row, where, "output")]


def _dolly(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    _require(row, where, "dolly", "instruction", "response")
    return [_instruction(row, where, "response")]


def _instruction(row: Row, where: str, answer: str) -> Example:
    instruction = text_of(row["instruction"], where, "instruction")
    context = _context(row, where)
    refuse_unheard(row, where, "row", ("tools",))
    earlier = turns_of_history(row.get("history"), where)
    output = text_of(row[answer], where, answer)
    return _pair(instruction, output, where, context=context, system=_system(row, where), earlier=earlier)


def _self_instruct(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    _require(row, where, "self-instruct", "instruction", "instances")
    refuse_unheard(row, where, "row", (*ABOUT, *SYSTEM, "history", "tools"))
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not all(isinstance(item, dict) for item in instances):
        raise DataError(f'{where}: "instances" is {shown(instances)}; a list of input and output is wanted.')
    flat = [{"instruction": row["instruction"], **instance} for instance in instances]
    return [example for item in flat for example in _alpaca(item, where, labels)]


def _text(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    _require(row, where, "text", "text")
    return [Example((), where, text=text_of(row["text"], where, "text"))]


def _classification(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    _require(row, where, "classification", "text", "label")
    pair = "" if row.get("text_pair") is None else text_of(row["text_pair"], where, "text_pair")
    asked, answered = text_of(row["text"], where, "text"), _label(row["label"], labels, where)
    return [_pair(asked, answered, where, context=pair, system=_system(row, where))]


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


def _tree(row: Row, where: str, labels: tuple[str, ...]) -> list[Example]:
    """The best-ranked path through a tree of OpenAssistant messages, as long as it ends with an answer."""
    _require(row, where, "oasst-trees", "prompt")
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


def _pair(
    asked: str, answered: str, where: str, *, context: str = "", system: str = "", earlier: tuple[Message, ...] = ()
) -> Example:
    first = (Message("system", system),) if system else ()
    return Example((*first, *earlier, Message("user", asked, context), Message("assistant", answered)), where)


def _require(row: Row, where: str, form: str, *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        near = "".join(did_you_mean(key, row) for key in missing)
        raise DataError(
            f"{where}: no {' and no '.join(map(repr, missing))} in a row of the {form} form; "
            f"the row has {some(map(shown, row), 8) or 'no keys'}.{near}"
        )


SIGNS: dict[str, Callable[[Row], bool]] = {
    "messages": lambda row: "messages" in row,
    "sharegpt": lambda row: "conversations" in row,
    "oasst-trees": lambda row: isinstance(row.get("prompt"), dict) and "replies" in row["prompt"],
    "self-instruct": lambda row: "instruction" in row and "instances" in row,
    "alpaca": lambda row: "instruction" in row and "output" in row,
    "dolly": lambda row: "instruction" in row and "response" in row,
    "prompt": lambda row: any(key in row for key in ASKED) and any(key in row for key in ANSWERED),
    "classification": lambda row: "text" in row and "label" in row,
    "text": lambda row: "text" in row,
}
PARSERS: dict[str, Callable[[Row, str, tuple[str, ...]], list[Example]]] = {
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
