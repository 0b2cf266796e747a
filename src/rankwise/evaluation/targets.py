"""Resolve a row's label to one of its choices, by text, number or letter.

A label such as 1 can be a text or a number, and the two readings may point to different choices. So all rows of a task
are read in the same way. If all rows share their choices, labels are texts as soon as one label is the text of a
choice; if rows have their own choices, the reading that fits more rows applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPELLED = {True: ("true", "yes"), False: ("false", "no")}


class ChoiceIndex(int):
    """An index into the choices that is already resolved."""


@dataclass(frozen=True)
class Label:
    value: Any
    choices: tuple[str, ...]
    where: str

    @property
    def text(self) -> int | None:
        """Index of the choice with this text; JSON's true matches "true", "True" and "yes"."""
        if isinstance(self.value, bool):
            spelled = SPELLED[self.value]
            return next((at for at, choice in enumerate(self.choices) if choice.lower() in spelled), None)
        text = str(self.value)
        return self.choices.index(text) if text in self.choices else None

    @property
    def index(self) -> int | None:
        """Index of the choice with this number, counted from 0, or this letter."""
        value = int(self.value) if isinstance(self.value, bool) else self.value
        if isinstance(value, str):
            digits = value.isascii() and value.isdigit() and len(value) < 9
            value = int(value) if digits else LETTERS.find(value) if len(value) == 1 else -1
        return value if isinstance(value, int) and 0 <= value < len(self.choices) else None

    def right(self, *, by_text: bool) -> int:
        found = self.text if by_text and not isinstance(self.value, ChoiceIndex) else self.index
        if found is None:
            texts = ", which other rows are labelled by" if by_text and self.index is not None else ""
            raise DataError(
                f"{self.where}: {shown(self.value)} is none of the {len(self.choices)} choices, by number, letter or "
                f"text{texts}."
            )
        return found


def are_texts(labels: Sequence[Label]) -> bool:
    """Decide whether the labels of a task are texts of choices. For rows with their own choices, take the reading that
    fits more rows, so that the exceptions are refused."""
    read = [label for label in labels if not isinstance(label.value, ChoiceIndex)]
    texts = sum(label.text is not None for label in read)
    if len({label.choices for label in read}) == 1:
        return texts > 0
    return texts >= sum(label.index is not None for label in read)
