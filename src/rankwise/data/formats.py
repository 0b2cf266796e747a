"""Stop 1: a raw mapping is checked once and becomes an Example. Next: templates.py.

Three forms of row are known: OpenAI messages; prompt and completion (or response); instruction, input and output.
The form is found by the row's keys. A row that fits its form badly is an error that names its line, its keys and
the keys that were wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankwise.data.example import Example, Message
from rankwise.errors import DataError, did_you_mean, some
from rankwise.spec.spec import shown

Row = dict[str, Any]
ROLES = ("system", "user", "assistant")


def find_format(row: Row, where: str) -> str:
    """The first row's keys decide for the whole file."""
    if "messages" in row:
        return "messages"
    if "prompt" in row and ("completion" in row or "response" in row):
        return "prompt"
    if "instruction" in row and "output" in row:
        return "instruction"
    raise DataError(
        f"{where}: the keys {some(map(shown, row), 8)} are no form of row that is known. Known are messages; "
        "prompt with completion or response; instruction with output (and input)."
    )


def parse_row(row: Row, form: str, where: str, system: str | None = None) -> Example:
    messages = FORMATS[form](row, where)
    if system is not None and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return Example(messages, where)


def _messages(row: Row, where: str) -> tuple[Message, ...]:
    _require(row, where, "messages", "messages")
    _refuse_unheard(row, where, "row", ("tools", "functions"))
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{where}: "messages" is {shown(turns)}; a list of turns with role and content is wanted.')
    messages = tuple(_message(turn, where, number) for number, turn in enumerate(turns, start=1))
    _check_order(messages, where)
    return messages


def _message(turn: Any, where: str, number: int) -> Message:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        raise DataError(f"{where}: turn {number} is {shown(turn)}; a role and a content are wanted.")
    role = turn["role"]
    if role not in ROLES:
        hint = did_you_mean(str(role), ROLES)
        raise DataError(f"{where}: turn {number} has the role {shown(role)}; known are {', '.join(ROLES)}.{hint}")
    _refuse_unheard(turn, where, f"turn {number}", ("tool_calls", "function_call", "tool_call_id"))
    if turn.get("weight", 1) != 1:
        raise DataError(f"{where}: turn {number} has the weight {shown(turn['weight'])}; only 1 can be followed yet.")
    return Message(role, _text(turn["content"], where, f"content of turn {number}", may_be_empty=role == "system"))


def _check_order(messages: tuple[Message, ...], where: str) -> None:
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise DataError(f"{where}: no turn has the role assistant, so there is no answer to learn.")
    if "user" not in roles[: roles.index("assistant")]:
        raise DataError(f"{where}: turn {roles.index('assistant') + 1} is an answer with no question before it.")
    if roles[-1] != "assistant":
        raise DataError(f"{where}: the last turn has the role {roles[-1]}; a row must end with the answer.")
    if "system" in roles[1:]:
        raise DataError(f"{where}: turn {roles.index('system', 1) + 1} has the role system; only the first may.")


def _prompt(row: Row, where: str) -> tuple[Message, ...]:
    answer = "response" if "response" in row and "completion" not in row else "completion"
    _require(row, where, "prompt", "prompt", answer)
    return _pair(_text(row["prompt"], where, "prompt"), _text(row[answer], where, answer))


def _instruction(row: Row, where: str) -> tuple[Message, ...]:
    _require(row, where, "instruction", "instruction", "output")
    instruction = _text(row["instruction"], where, "instruction")
    given = "" if row.get("input") is None else _text(row["input"], where, "input", may_be_empty=True)
    _refuse_unheard(row, where, "row", ("history",))
    system = _text(row.get("system") or "", where, "system", may_be_empty=True)
    pair = _pair(f"{instruction}\n\n{given}" if given.strip() else instruction, _text(row["output"], where, "output"))
    return (Message("system", system), *pair) if system else pair


def _pair(asked: str, answered: str) -> tuple[Message, ...]:
    return (Message("user", asked), Message("assistant", answered))


FORMATS: dict[str, Callable[[Row, str], tuple[Message, ...]]] = {
    "messages": _messages,
    "prompt": _prompt,
    "instruction": _instruction,
}


def _require(row: Row, where: str, form: str, *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        near = "".join(did_you_mean(key, row) for key in missing)
        raise DataError(
            f"{where}: no {' and no '.join(map(repr, missing))} in a row of the {form} form; "
            f"the row has {some(map(shown, row), 8) or 'no keys'}.{near}"
        )


def _text(value: Any, where: str, what: str, *, may_be_empty: bool = False) -> str:
    if isinstance(value, list) and value and all(map(_is_text_part, value)):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise DataError(f"{where}: the {what} is {shown(value)}; text is wanted.")
    if not may_be_empty and not value.strip():
        raise DataError(f"{where}: the {what} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the {what} has half a character (a lone surrogate) at {error.start}.") from None
    return value


def _refuse_unheard(holder: Row, where: str, what: str, keys: tuple[str, ...]) -> None:
    """What would change the conversation and cannot be followed yet must not be lost in silence."""
    there = [key for key in keys if holder.get(key)]
    if there:
        raise DataError(f"{where}: the {what} has {', '.join(map(repr, there))}, which this version cannot follow.")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
