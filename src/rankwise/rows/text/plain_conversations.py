"""Messages and tools as the plain values that a chat template is given, with the control tokens in them broken up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rankwise.rows.text.example import Message, ToolCall
from rankwise.rows.text.template_process import Conversation, Cut

Guard = Callable[[str], str]


def plain_conversation(
    messages: Sequence[Message], tools: Sequence[Any], cuts: Sequence[Cut], guarded: Guard, *, shows_context: bool
) -> Conversation:
    """`shows_context`: whether the template writes the context of a question itself; else it is put below."""
    turns = [_turn(message, guarded, shows_context) for message in messages]
    return Conversation(turns, [_guarded(tool, guarded) for tool in tools] or None, cuts)


def _turn(message: Message, guarded: Guard, shows_context: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {
        "role": message.role,
        "content": guarded(message.content if shows_context else message.whole),
    }
    if shows_context and message.context:
        turn["context"] = guarded(message.context)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, guarded) for call in message.tool_calls]
    if message.name is not None:
        turn["name"] = guarded(message.name)
    if message.call_id is not None:
        turn["tool_call_id"] = guarded(message.call_id)
    return turn


def _call(call: ToolCall, guarded: Guard) -> dict[str, Any]:
    function = {"name": guarded(call.name), "arguments": _guarded(call.arguments, guarded)}
    return {"type": "function", "function": function} | ({"id": guarded(call.call_id)} if call.call_id else {})


def _guarded(value: Any, guarded: Guard) -> Any:
    if isinstance(value, str):
        return guarded(value)
    if isinstance(value, dict):
        return {guarded(key): _guarded(inside, guarded) for key, inside in value.items()}
    return [_guarded(inside, guarded) for inside in value] if isinstance(value, list) else value
