"""Read the turns of a conversation, in OpenAI's or ShareGPT's format, as Messages.

First each role, text and tool call is checked, then the order: an answer follows a question, a row ends with an answer,
a system message comes first, and a tool's result follows a call. Reasoning in a field of its own is put into the
answer's text, in the form that chat templates know.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError, did_you_mean, some
from rankwise.rows.forms.proposals import ignoring
from rankwise.rows.text.example import BREAK, CLOSE, Message, Role, ToolCall, with_thought
from rankwise.system.foreign_json import loads

REASONING = ("reasoning_content", "reasoning", "thinking")
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool",
}  # fmt: skip
NOT_SUPPORTED = ("function_call", *REASONING, "audio", "images", "refusal")
IN_LOSS = ("weight", "train", "loss")
"""Keys of a turn that say whether it is in the loss."""
KEYS = {"role", "from", "content", "value", "tool_calls", "name", "tool_call_id", *IN_LOSS}
DEEPEST = 100
"""Levels of a JSON value in a row. Templates are given such values by recursion."""


def reasoning_in_content(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the reasoning of each turn between tags before its content."""
    return {key: [_turn(turn) for turn in value] if isinstance(value, list) else value for key, value in row.items()}


def _turn(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    field = next((name for name in REASONING if isinstance(turn.get(name), str) and turn[name].strip()), None)
    content = next((name for name in ("content", "value") if isinstance(turn.get(name), str)), None)
    if field is None or content is None or CLOSE in turn[content]:
        return turn
    others = {name: value for name, value in turn.items() if name != field}
    return others | {content: with_thought(turn[field], turn[content])}


def read_turns(turns: Any, where: str, key: str, *, skip_first_answer: bool = False) -> tuple[Message, ...]:
    """Read a list of turns. `skip_first_answer` skips one assistant turn before the first human turn, as FastChat does
    for ShareGPT."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a cell of a table
        turns = _json(turns, where, key)
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{where}: "{key}" is {shown(turns)}; a list of turns with role and content is expected.')
    messages = [_message(turn, where, number) for number, turn in enumerate(turns, start=1)]
    skipped = int(skip_first_answer and len(messages) > 1 and messages[0].role == "assistant")
    _check_order(messages[skipped:], where, skipped)
    return tuple(messages[skipped:])


def _message(turn: Any, where: str, number: int) -> Message:
    content_key = next((key for key in ("content", "value") if isinstance(turn, dict) and key in turn), None)
    role_key = next((key for key in ("role", "from") if isinstance(turn, dict) and key in turn), None)
    if role_key is None or (content_key is None and not turn.get("tool_calls")):
        raise DataError(f"{where}: turn {number} is {shown(turn)}; a role and a content are expected.")
    role = _role(turn[role_key], where, number)
    refuse_unsupported(turn, where, f"turn {number}", NOT_SUPPORTED)
    _refuse_unknown(turn, where, number)
    calls = _calls(turn, content_key, where, number)
    if calls and role != "assistant":
        raise DataError(
            f"{where}: turn {number} calls a tool, but its role is {role}; only the assistant can call a tool."
        )
    content = turn[content_key] if content_key and turn[role_key] != "function_call" else ""
    if role == "assistant" and isinstance(content, dict):
        content = written_as_json(content, where, f"content of turn {number}")
    learned = [_in_loss(key, turn.get(key), where, number, role) for key in IN_LOSS]
    may_be_empty = bool(calls) or role in ("system", "tool")
    return Message(
        role,
        text_of("" if content is None and may_be_empty else content, where, f"content of turn {number}",
                may_be_empty=may_be_empty),
        tool_calls=calls,
        name=_optional(turn.get("name"), where, f"name in turn {number}"),
        call_id=_optional(turn.get("tool_call_id"), where, f"tool_call_id of turn {number}"),
        learned=all(learned),
    )  # fmt: skip


def _refuse_unknown(turn: dict[str, Any], where: str, number: int) -> None:
    """Refuse keys that might change what is learned; other programs write many. Those without a value say nothing."""
    given = {key: value for key, value in turn.items() if key not in KEYS and value not in (None, "", [], {})}
    if unknown := [key for key, value in given.items() if value is not False or key not in ("mask", "prefix")]:
        names = some(map(shown, unknown), 6)
        raise DataError(
            f"{where}: turn {number} has {names}, which rankwise does not read, so it would have no effect. To leave a "
            f"turn out of the loss, write weight 0; to ignore the key, add {ignoring(unknown)}."
        )


def _role(role: Any, where: str, number: int) -> Role:
    if not isinstance(role, str) or role not in ROLES:
        hint = did_you_mean(str(role), ROLES)
        raise DataError(f"{where}: turn {number} has the role {shown(role)}; known are {', '.join(ROLES)}.{hint}")
    return ROLES[role]


def _in_loss(key: str, value: Any, where: str, number: int, role: Role) -> bool:
    if value is None:
        return True
    if value not in (0, 1) or (key == "weight" and isinstance(value, bool)):
        raise DataError(f"{where}: turn {number} has the {key} {shown(value)}; use 0 (no loss) or 1 (loss).")
    if value and role != "assistant" and key != "weight":
        raise DataError(f"{where}: turn {number} has the {key} {shown(value)}, but only answers are learned.")
    return bool(value)


def _calls(turn: dict[str, Any], content_key: str | None, where: str, number: int) -> tuple[ToolCall, ...]:
    """The calls in OpenAI's `tool_calls`, or in a ShareGPT turn with the role function_call, whose text is the call."""
    calls = turn.get("tool_calls") or ()
    if turn.get("from", turn.get("role")) == "function_call":
        called = turn.get(content_key or "")
        called = _json(called, where, f"content of turn {number}") if isinstance(called, str) else called
        calls = called if isinstance(called, list) else [called]
    if not isinstance(calls, list | tuple):
        raise DataError(f"{where}: the tool_calls of turn {number} are {shown(calls)}; a list is expected.")
    return tuple(_call(call, where, number) for call in calls)


def _call(call: Any, where: str, number: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{where}: turn {number} calls {shown(call)}; a function with name and arguments is expected.")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", where, f"arguments of {function['name']} in turn {number}")
    if not isinstance(arguments, dict):
        raise DataError(
            f"{where}: the arguments of {function['name']} in turn {number} are {shown(arguments)}; "
            "write a JSON object, or its text."
        )
    _check_texts(function["name"], where, f"name called in turn {number}")
    _check_texts(arguments, where, f"arguments of {function['name']} in turn {number}")
    return ToolCall(function["name"], arguments, _optional(call.get("id"), where, f"id of a call in turn {number}"))


def _optional(value: Any, where: str, what: str) -> str | None:
    return None if value is None else text_of(value, where, what)


def _check_texts(value: Any, where: str, what: str, depth: int = DEEPEST) -> None:
    """Refuse texts (keys too) inside a JSON value that cannot be encoded, and numbers that JSON cannot write."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: the {what} has the number {value}, which JSON cannot write.")
    if isinstance(value, str):
        text_of(value, where, what, may_be_empty=True)
    elif isinstance(value, dict | list) and not depth:
        raise DataError(f"{where}: the {what} is nested more than {DEEPEST} levels deep.")
    elif isinstance(value, dict):
        for key, inside in value.items():
            _check_texts(key, where, what)
            _check_texts(inside, where, what, depth - 1)
    elif isinstance(value, list):
        for inside in value:
            _check_texts(inside, where, what, depth - 1)


def is_json(value: Any) -> bool:
    """Whether a value is an object, or a list without texts, parts of texts and turns of a conversation."""
    inside = value if isinstance(value, list) else [value]
    other = any(isinstance(one, str) or is_turn(one) or _is_text_part(one) for one in inside)
    return isinstance(value, dict | list) and bool(value) and not other


def written_as_json(value: Any, where: str, what: str) -> str:
    """An object or a list as JSON, with its keys in the order of the row, which may be that of reasoning and answer."""
    _check_texts(value, where, what)
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # a date or bytes, which only tables of Parquet and Arrow hold
        raise DataError(f"{where}: the {what} is {shown(value)}, which JSON cannot write.") from None


def answers_of(value: Any, where: str, what: str) -> tuple[str, ...]:
    """Alternative answers, or the only one: a text, or a JSON value."""
    if (several := texts_of(value, where, what)) is not None:
        return several
    return (written_as_json(value, where, what) if is_json(value) else text_of(value, where, what),)


def read_tools(tools: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Schemas of the tools, from a list or its JSON text, in OpenAI's format."""
    if isinstance(tools, str):
        tools = _json(tools, where, "tools") if tools.strip() else []
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where}: the tools are {shown(tools)}; a list of functions is expected.")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for number, tool in enumerate(wrapped, start=1):
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise DataError(f"{where}: tool {number} has no name: {shown(tool)}.")
        _check_texts(tool, where, f"schema of tool {number}")
    return tuple(wrapped)


JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip


def check_calls(messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], where: str) -> None:
    """Refuse calls of functions that are none of the tools, and arguments that their JSON schemas do not allow."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    for call in (call for message in messages for call in message.tool_calls):
        if call.name not in schemas:
            raise DataError(
                f"{where}: calls {shown(call.name)}, which is none of its tools ({some(map(shown, schemas), 8)})."
                f"{did_you_mean(call.name, schemas)}"
            )
        if (problem := _misfit(call.arguments, schemas[call.name], "")) is not None:
            raise DataError(f"{where}: calls {call.name} with {shown(call.arguments)}: {problem}")


def _misfit(value: Any, schema: Any, path: str) -> str | None:
    """What a schema does not allow in a value: names, types and lists of allowed values are looked at, and nothing
    else. An optional part that is null is as one that is missing, which is how tables write it."""
    if not isinstance(schema, dict):
        return None
    given = schema.get("type")
    kinds = list(map(str, given if isinstance(given, list) else [given]))
    if all(kind in JSON_TYPES for kind in kinds) and not any(_is_of(value, kind) for kind in kinds):
        return f"the argument {path} is {shown(value)}, and its type is {' or '.join(kinds)}."
    allowed = schema.get("enum")
    if isinstance(allowed, list) and value not in allowed:
        return f"the argument {path} is {shown(value)}, and it can be {some(map(shown, allowed), 8)}."
    if isinstance(value, list):
        inside = ((f"{path}[{at}]", one, schema.get("items")) for at, one in enumerate(value))
        return next(filter(None, (_misfit(one, own, name) for name, one, own in inside)), None)
    return _misfit_of_object(value, schema, path) if isinstance(value, dict) else None


def _misfit_of_object(value: dict[str, Any], schema: dict[str, Any], path: str) -> str | None:
    listed, needed, dot = schema.get("properties"), schema.get("required"), f"{path}." if path else ""
    properties = {name: one for name, one in listed.items() if one is not None} if isinstance(listed, dict) else {}
    needed = [name for name in needed if isinstance(name, str)] if isinstance(needed, list) else []
    if missing := [name for name in needed if name not in value]:
        return f"the argument {dot}{missing[0]} is missing."
    given = {name: one for name, one in value.items() if one is not None or name in needed}
    unknown = [name for name in given if name not in properties]
    is_open = not properties or not {"anyOf", "oneOf", "allOf", "patternProperties"}.isdisjoint(schema)
    if unknown and not schema.get("additionalProperties", is_open):
        return f"there is no argument {dot}{unknown[0]}.{did_you_mean(unknown[0], properties)}"
    parts = (_misfit(one, properties.get(name), f"{dot}{name}") for name, one in given.items())
    return next(filter(None, parts), None)


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    whole = isinstance(value, float) and value.is_integer()
    return isinstance(value, JSON_TYPES[kind]) or (whole and kind == "integer")


def _check_order(messages: list[Message], where: str, skipped: int) -> None:
    roles, first = [message.role for message in messages], 1 + skipped
    if "assistant" not in roles:
        but = " but the first" if skipped else ""
        raise DataError(f"{where}: no turn{but} has the role assistant, so there is no answer to train on.")
    if "user" not in roles[: roles.index("assistant")]:
        raise DataError(f"{where}: turn {first + roles.index('assistant')} is an answer without a question before it.")
    if roles[-1] != "assistant":
        raise DataError(f"{where}: the last turn has the role {roles[-1]}; a row must end with the answer.")
    if "system" in roles[1:]:
        raise DataError(f"{where}: turn {first + roles.index('system', 1)} has the role system; only the first may.")
    if not any(message.learned for message in messages if message.role == "assistant"):
        raise DataError(f"{where}: every answer has the weight 0 (or train false), so there is nothing to train on.")
    called = False
    for number, message in enumerate(messages, start=first):
        if message.role == "tool" and not called:
            raise DataError(f"{where}: turn {number} is a tool's result, but no turn before it calls a tool.")
        if called and messages[number - first - 1].tool_calls and message.role != "tool" and not message.tool_calls:
            raise DataError(f"{where}: turn {number - 1} calls a tool, and turn {number} is not the result.")
        called = bool(message.tool_calls) or (called and message.role == "tool")
    _check_ids(messages, where, first)


def _check_ids(messages: list[Message], where: str, first: int) -> None:
    """Refuse results that belong to no call, or to a call that has its result, where calls have ids."""
    named, waiting = False, set[str | None]()
    for number, message in enumerate(messages, start=first):
        ids = [call.call_id for call in message.tool_calls]
        twice = next((name for name in ids if name is not None and ids.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{where}: turn {number} has two calls with the id {shown(twice)}.")
        if message.role != "tool" and not ids and (without := next(filter(None, waiting), None)) is not None:
            raise DataError(f"{where}: turn {number} goes on, and the call {shown(without)} before it has no result.")
        named, waiting = named or any(ids), waiting | {*ids}
        waiting = set() if message.role == "tool" and message.call_id is None else waiting  # of an unknown call
        if message.role == "tool" and named and message.call_id is not None:
            if message.call_id not in waiting:
                raise DataError(
                    f"{where}: turn {number} is the result of the call {shown(message.call_id)}, and no turn before it "
                    "has a call with this id that waits for its result."
                )
            waiting.remove(message.call_id)


def turns_of_prompt(prompt: Any, completion: Any, where: str) -> tuple[Message, ...]:
    """TRL's conversational prompt and completion as turns. The loss leaves out answers inside the prompt."""
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answers = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    without_loss = [{**turn, "weight": 0} if _is_answer(turn) else turn for turn in before]
    return read_turns([*without_loss, *answers], where, "prompt")


def is_turn(value: Any) -> bool:
    role = value.get("role", value.get("from")) if isinstance(value, dict) else None
    return isinstance(role, str) and (role in ROLES or "content" in value or "value" in value)


def _is_answer(turn: Any) -> bool:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return isinstance(role, str) and ROLES.get(role) == "assistant"


def turns_of_history(history: Any, where: str) -> tuple[Message, ...]:
    """Earlier turns of an Alpaca row: pairs of a question and its answer."""
    if history is None:
        return ()
    if isinstance(history, str):
        history = _json(history, where, "history") if history.strip() else []
    pairs = list(history) if isinstance(history, list) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{where}: the history is {shown(history)}; pairs of question and answer are expected.")
    roles: tuple[Role, Role] = ("user", "assistant")
    return tuple(
        Message(role, text_of(text, where, f"{role} of turn {number} in the history"))
        for number, pair in enumerate(pairs, start=1)
        for role, text in zip(roles, pair, strict=True)
    )


def text_of(value: Any, where: str, what: str, *, may_be_empty: bool = False) -> str:
    """The value as a text that can be tokenized; anything else is refused."""
    if isinstance(value, list) and value and all(map(_is_text_part, value)):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise DataError(f"{where}: the {what} is {shown(value)}; text is expected.")
    if not may_be_empty and not value.strip():
        raise DataError(f"{where}: the {what} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the {what} has half a character (a lone surrogate) at {error.start}.") from None
    for forbidden, called in (("\0", "a NUL character"), (BREAK, "the noncharacter U+FDD0")):
        if forbidden in value:
            raise DataError(f"{where}: the {what} has {called} at {value.index(forbidden)}.")
    return value


def texts_of(value: Any, where: str, what: str) -> tuple[str, ...] | None:
    """Alternative answers, each once: a list of texts, or SQuAD's format. None for any other value."""
    listed = value.get("text") if isinstance(value, dict) else value
    parts = listed if isinstance(listed, list) else []
    if parts and all(isinstance(one, dict) and set(one) & _SPOKEN == {"text"} for one in parts):
        listed = [one["text"] for one in parts]
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        return None
    if not listed:
        raise DataError(f"{where}: the {what} is a list without any text.")
    return tuple(dict.fromkeys(text_of(one, where, f"{what} {number}") for number, one in enumerate(listed, start=1)))


_SPOKEN = {"text", "type", "role", "from", "content", "value"}
"""Keys of message parts. An answer of SQuAD has the text and its position instead."""


def refuse_unsupported(holder: dict[str, Any], where: str, what: str, keys: tuple[str, ...]) -> None:
    """Refuse fields that would change the conversation and are not supported yet."""
    there = [key for key in keys if holder.get(key)]
    if there:
        setting = " Set data.reasoning to learn or mask." if set(there) & set(REASONING) else ""
        raise DataError(f"{where}: the {what} has {', '.join(map(repr, there))}, which is not supported.{setting}")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _json(text: str, where: str, what: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: the {what} is not JSON: {shown(text)}.") from None
