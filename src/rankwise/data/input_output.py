"""Rows of an input and the output that is to be written for it."""

from __future__ import annotations

from rankwise.data.columns import Row, answered
from rankwise.data.fields import SYSTEM, require, system_of
from rankwise.data.turns import answers_of, refuse_unsupported, text_of
from rankwise.text.example import Example, Message

FIELDS_OF_INPUT_OUTPUT = frozenset({"input", "output", *SYSTEM})


def is_input_output(row: Row) -> bool:
    return "input" in row and "output" in row


def input_output_examples(row: Row, where: str, *, each: bool) -> list[Example]:
    """With `each`, one example for every text of an output that is a list of them."""
    require(row, where, "input-output", "input", "output")
    refuse_unsupported(row, where, "row", ("context", "history", "tools"))
    system, given = system_of(row, where), text_of(row["input"], where, "input")
    first = (Message("system", system),) if system else ()
    answers = answers_of(row["output"], where, "output")
    return answered((*first, Message("user", given)), answers, where, each=each)
