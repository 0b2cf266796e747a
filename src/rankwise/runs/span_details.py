"""Details of a token classifier's evaluation: figures of each type of span, and the texts with wrong spans."""

from __future__ import annotations

from typing import Any

from rankwise.config.base import Config
from rankwise.runs.class_details import SUMMARISED, Count, OneClass


class WrongSpans(Config):
    """A text whose predicted spans are not the true ones. A span is written as its type and its text."""

    name: str
    """Where the text stands."""
    text: str
    """Its beginning."""
    missed: list[str]
    """True spans that were not predicted."""
    wrong: list[str]
    """Predicted spans that are not true."""


class SpanDetails(Config):
    types: list[OneClass]
    """Each type of span; `rows` are true spans of the type, and `predicted` those that are predicted."""
    texts: Count
    wrong_texts: Count
    """Texts with at least one wrong or missed span."""
    wrong: list[WrongSpans]
    """The first of these; at most a few hundred."""

    def summary(self) -> dict[str, Any]:
        """Return everything, but only the first wrong texts."""
        return self.model_copy(update={"wrong": self.wrong[:SUMMARISED]}).model_dump(mode="json")
