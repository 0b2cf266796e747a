"""What an encoder reads of a conversation, and what a decoder is to write."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import DataError
from rankwise.rows.text.example import Example, Message


def input_of(messages: Sequence[Message]) -> str:
    """The text of a conversation that is a single question."""
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"an encoder reads one text, and this is a conversation of {roles}. Write what it needs into a single "
            "prompt."
        )
    return messages[0].whole


def input_and_output(example: Example) -> tuple[str, str]:
    """DataError where a row is not one input with one output."""
    where = example.where
    if example.text is not None:
        raise DataError(f"{where}: is a plain text, and an input with its output is expected.")
    roles = [message.role for message in example.messages]
    if roles != ["user", "assistant"] or example.tools or example.messages[1].tool_calls:
        raise DataError(
            f"{where}: is a conversation ({', '.join(roles)}), and one input with one output is expected, without a "
            "system message or tools."
        )
    given, output = example.messages[0].whole, example.messages[1].content
    for name, text in (("input", given), ("output", output)):
        if not text.strip():
            raise DataError(f"{where}: the {name} is empty.")
    return given, output
