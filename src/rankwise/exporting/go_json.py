"""JSON as Go's encoding/json writes it, and what Ollama hands to a template of a conversation.

Go writes no space after a comma or colon, sorts the keys of maps, and escapes <, > and & in texts. Numbers of a request
are float64, so 1.0 is written as 1. Ollama joins messages of one role that follow each other, and reads of a tool only
the fields that are listed here: it forgets all others, and the order of parameters.

Source: the functions collate, convertMessagesForTemplate and convertToolsForTemplate of template/template.go, and the
types of api/types.go, of Ollama 0.33.0-rc2 (commit fb307609 of 2026-08-21).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwise.text.example import Message

ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class GoMap(dict[str, Any]):
    """A Go map, whose keys `range` visits in sorted order. A plain dict stands for a Go struct."""


def go_json(value: Any) -> str:
    """The value as `json` writes it in a template."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).translate(ESCAPES)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return _number(float(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{go_json(key)}:{go_json(value[key])}" for key in sorted(value)) + "}"
    return "[" + ",".join(map(go_json, value)) + "]"


def _number(value: float) -> str:
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        if value.is_integer():
            return ("-" if math.copysign(1, value) < 0 and value == 0 else "") + str(int(value))
        digits = repr(value)
        return digits if "e" not in digits else f"{value:.{6 + len(digits)}f}".rstrip("0")
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"


def template_values(messages: Sequence[Message], tools: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The root of a template for these messages and tools (in OpenAI's form)."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message.role != "tool":
            joined[-1]["Content"] += "\n\n" + message.content
            continue
        calls = [{"Function": {"Name": call.name, "Arguments": GoMap(call.arguments)}} for call in message.tool_calls]
        joined.append({"Role": message.role, "Content": message.content, "ToolCalls": calls})
    return {"System": system, "Messages": joined, "Tools": [_tool(tool) for tool in tools], "Response": ""}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    parameters = function.get("parameters") or {}
    properties = GoMap({name: _property(one) for name, one in (parameters.get("properties") or {}).items()})
    return {
        "Type": tool.get("type", ""),
        "Function": {
            "Name": function["name"],
            "Description": function.get("description", ""),
            "Parameters": {
                "Type": parameters.get("type", ""),
                "Required": list(parameters.get("required") or []),
                "Properties": properties,
            },
        },
    }


def _property(described: Mapping[str, Any]) -> dict[str, Any]:
    kind = described.get("type", "")
    return {
        "Type": kind[0] if isinstance(kind, list) and len(kind) == 1 else kind,
        "Description": described.get("description", ""),
        "Enum": list(described.get("enum") or []),
    }
