"""What a model predicts for a row, other than tokens."""

from __future__ import annotations

from typing import Literal

from rankwise.config.base import Config
from rankwise.errors import one_line, some

Pooling = Literal["own", "mean", "cls", "max"]
OF_LANGUAGE_MODELS = "nats per loss token"


class TargetFacts(Config):
    """What a model predicts for a row: one of several classes, a number if there are no classes, or tags of words."""

    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the model's outputs."""
    counts: tuple[int, ...] = ()
    """Rows of each class in the training data, or words of each tag; held-out validation rows included."""
    weights: tuple[float, ...] = ()
    """Weight of each class in the loss; empty if all weigh 1."""
    balanced: bool = False
    """Whether training shows every class equally often, so rows of rare classes more often than others."""
    form: Literal["one", "several", "tags"] = "one"
    """Whether a row has one class or number, several classes or none, or each of its words a class, which is its
    tag."""
    pooling: Pooling = "own"
    """What the head reads of a whole text (classification.pooling); earlier runs do not record it and have their
    own."""
    low: float | None = None
    """Of numbers, the lowest and the highest target."""
    high: float | None = None

    @property
    def one_class(self) -> bool:
        """Whether each row has one class."""
        return bool(self.classes) and self.form == "one"

    @property
    def outputs(self) -> int:
        """Number of the model's outputs."""
        return len(self.classes) or 1

    @property
    def loss_unit(self) -> str:
        if not self.classes:
            return "squared error per row"
        return {"tags": "nats per word", "several": "nats per row and class"}.get(self.form, "nats per row")

    @property
    def unit(self) -> str:
        """What has a target."""
        return "words" if self.form == "tags" else "rows"

    def describe(self) -> str:
        if not self.classes:
            return f"the target is a number between {self.low:g} and {self.high:g}"
        rows = zip(self.classes, self.counts, strict=True)
        listed = some((f"{one_line(name)} ({count:,} {self.unit})" for name, count in rows), 12)
        weights = some((f"{weight:.3g}" for weight in self.weights), 12)
        classes = {"tags": "tags", "several": "classes, any number of them in a row"}.get(self.form, "classes")
        return f"{len(self.classes)} {classes}: {listed}" + (f"; weights in the loss: {weights}" if weights else "")


def loss_unit(targets: TargetFacts | None) -> str:
    """What a loss is measured in, of a language model or a classifier."""
    return OF_LANGUAGE_MODELS if targets is None else targets.loss_unit
