"""What a classifier says of a row: the probability of each class, or a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

Numbers = NDArray[np.float64]
Done = Callable[[int], None]
Outputs = Callable[[nn.Module, Sequence[Tokens], Done | None], Any]
"""What a classifier says of rows in their order, where several processes compute it."""
THRESHOLD = 0.5
"""Where a row may have several classes, the probability above which a class is predicted."""


def probability_column(name: str) -> str:
    """The column of a class's probability."""
    return f"probability_{name}"


@dataclass(frozen=True)
class Longest:
    """How many tokens a row to predict may have. As the rows of its run were, a longer text is cut or is a problem."""

    tokens: int
    cuts: bool

    @property
    def cut(self) -> int | None:
        """The length that longer texts are cut to; None where they are problems."""
        return self.tokens if self.cuts else None

    def add(self, outcome: Outcome, row: Tokens) -> None:
        """The encoded row, or that it is too long."""
        outcome.sequences = [row]
        if len(row.ids) > self.tokens:
            outcome.problem = (
                f"{outcome.example.where}: has {len(row.ids):,} tokens, and the run's longest row may have "
                f"{self.tokens:,} (data.max_length, and the model's context). Shorten the text."
            )


class Prediction(Protocol):
    """What a classifier says of one row."""

    def as_columns(self, column: str) -> dict[str, Any]:
        """For a file of rows: the prediction in this column, and what belongs beside it."""
        ...

    def as_values(self) -> dict[str, Any]:
        """For a Python program."""
        ...

    def as_shown(self) -> dict[str, Any]:
        """For a page."""
        ...


@dataclass(frozen=True)
class ClassShares:
    """`label` is the likeliest class; without classes, `value` is the predicted number."""

    label: str | None
    value: float | None
    probabilities: dict[str, float]
    """The probability of every class. They sum to 1 unless a row may have several classes."""
    labels: list[str] | None = None
    """Where a row may have several classes: those with a probability above THRESHOLD."""

    @classmethod
    def of(cls, targets: TargetFacts, outputs: Numbers) -> ClassShares:
        if not targets.classes:
            return cls(None, float(outputs[0]), {})
        shares = dict(zip(targets.classes, outputs.tolist(), strict=True))
        if targets.form == "several":
            return cls(None, None, shares, [name for name, share in shares.items() if share > THRESHOLD])
        return cls(targets.classes[int(outputs.argmax())], None, shares)

    @property
    def _chosen(self) -> str | list[str] | None:
        return self.label if self.labels is None else self.labels

    def as_columns(self, column: str) -> dict[str, Any]:
        """With the probability of each class."""
        shares = {probability_column(name): round(share, 6) for name, share in self.probabilities.items()}
        return {column: self.value if self._chosen is None else self._chosen, **shares}

    def as_values(self) -> dict[str, Any]:
        if self._chosen is None:
            return {"value": self.value}
        if self.label is None:
            return {"labels": self.labels, "probabilities": self.probabilities}
        share = self.probabilities[self.label]
        return {"label": self.label, "probability": share, "probabilities": self.probabilities}

    def as_shown(self) -> dict[str, Any]:
        shares = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return {"labels": shares, "value": self.value, "chosen": self._chosen}
