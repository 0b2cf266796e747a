"""Details of an evaluation where a row may have several labels, or several spans: figures of each, and wrong rows."""

from __future__ import annotations

from typing import Any, Literal

from rankwise.config.base import Config
from rankwise.runs.class_details import SUMMARISED, Count, OneClass


class WrongSet(Config):
    """A row whose predictions are not the true ones. A span is written as its type and its text."""

    name: str
    """Where the row stands."""
    text: str
    """Its beginning."""
    missed: list[str]
    """What is true and was not predicted."""
    wrong: list[str]
    """What was predicted and is not true."""


class SetDetails(Config):
    of: Literal["labels", "spans"]
    types: list[OneClass]
    """Each label, or each type of span; `rows` are those that are true, and `predicted` those that are predicted."""
    rows: Count
    wrong_rows: Count
    """Rows with at least one wrong or missed label or span."""
    wrong: list[WrongSet]
    """The first of these; at most a few hundred."""

    def summary(self) -> dict[str, Any]:
        """Return everything, but only the first wrong rows."""
        return self.model_copy(update={"wrong": self.wrong[:SUMMARISED]}).model_dump(mode="json")
