"""Which of a row's choices its label means: by the choice's own text, or by number or letter.

A label such as 1 may be either, and the two may name different choices. So all rows of a task are read alike: by text
where any label is the text of a choice that all rows share, or, where rows have choices of their own, where every
label is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPELLED = {True: ("true", "yes"), False: ("false", "no")}


class Place(int):
    """Among the choices, whatever these say: nothing is left to read."""


@dataclass(frozen=True)
class Label:
    value: Any
    choices: tuple[str, ...]
    where: str

    @property
    def text(self) -> int | None:
        """The place of the choice that says so; JSON's true is "true", "True" or "yes"."""
        if isinstance(self.value, bool):
            spelled = SPELLED[self.value]
            return next((at for at, choice in enumerate(self.choices) if choice.lower() in spelled), None)
        said = str(self.value)
        return self.choices.index(said) if said in self.choices else None

    @property
    def place(self) -> int | None:
        """By number from 0, or by letter."""
        value = int(self.value) if isinstance(self.value, bool) else self.value
        if isinstance(value, str):
            digits = value.isascii() and value.isdigit() and len(value) < 9
            value = int(value) if digits else LETTERS.find(value) if len(value) == 1 else -1
        return value if isinstance(value, int) and 0 <= value < len(self.choices) else None

    def right(self, *, by_text: bool) -> int:
        found = self.text if by_text and not isinstance(self.value, Place) else self.place
        if found is None:
            texts = ", which other rows are labelled by" if by_text and self.place is not None else ""
            raise DataError(
                f"{self.where}: {shown(self.value)} is none of the {len(self.choices)} choices, by number, letter or "
                f"text{texts}."
            )
        return found


def are_texts(labels: Sequence[Label]) -> bool:
    """Whether the labels of a task are texts of their choices. Of rows with choices of their own the reading that fits
    all of them, or else more of them, so that the odd ones are those that are refused."""
    read = [label for label in labels if not isinstance(label.value, Place)]
    texts = sum(label.text is not None for label in read)
    if len({label.choices for label in read}) == 1:
        return texts > 0
    return texts >= sum(label.place is not None for label in read)
