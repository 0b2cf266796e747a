"""Reasoning that a row has in a field of its own, put into the answer's text in the form that chat templates know."""

from __future__ import annotations

from typing import Any

from rankwise.text.reasoning import CLOSE, joined

FIELDS = ("reasoning_content", "reasoning", "thinking")


def reasoning_in_content(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the reasoning of each turn between tags before its content."""
    return {key: [_turn(turn) for turn in value] if isinstance(value, list) else value for key, value in row.items()}


def _turn(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    field = next((name for name in FIELDS if isinstance(turn.get(name), str) and turn[name].strip()), None)
    content = next((name for name in ("content", "value") if isinstance(turn.get(name), str)), None)
    if field is None or content is None or CLOSE in turn[content]:
        return turn
    others = {name: value for name, value in turn.items() if name != field}
    return others | {content: joined(turn[field], turn[content])}
