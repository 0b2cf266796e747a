"""Measured values with their intervals, and the details of an evaluation: figures of each class, label or type of span,
confusions, calibration, wrong rows, and what became of features."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from rankwise.config.base import Config

Verdict = Literal["better", "worse", "cannot tell"]
LEVEL = 0.05
"""Significance level of the paired test; intervals have level 1 - LEVEL."""


class Measurement(Config):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, low: float, high: float) -> Self:
        """With an interval that contains the value, whatever rounding did."""
        return cls(value=value, low=min(low, value), high=max(high, value))

    def shown(self, form: str = ".4g") -> str:
        return f"{self.value:z{form}} ({self.low:z{form}} to {self.high:z{form}})"


class Difference(Config):
    """The difference b minus a over the same items, with its 95 % interval and the p-value of a paired test."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    verdict: Verdict
    """Verdict on b, which accounts for whether higher or lower is better."""

    @property
    def undecided(self) -> str | None:
        """Explain a missing verdict if interval and test disagree."""
        if self.verdict != "cannot tell" or (self.low <= 0 <= self.high and self.p >= LEVEL):
            return None
        if self.low <= 0 <= self.high:
            return f"the paired test has p = {self.p:.2g}, but the interval includes 0; a verdict needs both"
        return f"the interval excludes 0, but the paired test has p = {self.p:.2g}; a verdict needs p below {LEVEL:g}"


SUMMARISED = 24
"""Wrong rows that `rankwise evaluate --json` prints."""
LARGEST_THUMBNAIL = 24_000
Thumbnail = Annotated[
    str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*\Z", max_length=LARGEST_THUMBNAIL)
]
"""A small picture as a data: URI."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class OneClass(Config):
    """Figures of one class: `rows` have it, and `predicted` rows are said to have it."""

    name: str
    rows: Count
    predicted: Count
    precision: Measurement | None
    """The share of the predicted rows that are right; None if there are none."""
    recall: Measurement | None
    """The share of the class's rows that are right; None if there are none."""
    f1: Measurement | None
    """None if the class never occurs."""


class CalibrationBin(Config):
    """The rows whose predicted class has a probability in a range that contains its upper end."""

    low: Share
    high: Share
    rows: Count
    confidence: Share
    """The mean probability of the predicted class."""
    right: Measurement
    """The share of these rows that are right."""


class WrongRow(Config):
    name: str
    """Where the row stands, or an image's file."""
    actual: str
    predicted: str
    probability: Share
    """The probability of the predicted class."""
    probability_of_actual: Share
    text: str | None = None
    """The beginning of the row's text."""
    thumbnail: Thumbnail | None = None


class ClassDetails(Config):
    classes: list[OneClass]
    """In the order of the model's outputs."""
    confusion: list[tuple[Count, Count, Count]]
    """[actual class, predicted class, rows], by number in `classes`, for the pairs that occur."""
    calibration: list[CalibrationBin]
    """The ranges that contain rows."""
    calibrated_error: float
    """The calibration error that chance gives a perfectly calibrated classifier with the same probabilities."""
    wrong_rows: Count
    wrong: list[WrongRow]
    """The most confident wrong rows first; at most a few hundred."""

    def summary(self) -> dict[str, Any]:
        """Return everything but the pictures, and only the first wrong rows."""
        brief = self.model_copy(update={"wrong": self.wrong[:SUMMARISED]})
        return brief.model_dump(mode="json", exclude={"wrong": {"__all__": {"thumbnail"}}})


class WrongSet(Config):
    """A row whose predictions are not the true ones. A span is written as its type and its text."""

    name: str
    """Where the row stands."""
    text: str
    """The beginning of the text."""
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


class FeatureForgetting(Config):
    """Features of the last layer before the head, of the base and of the tuned model, on the same other images."""

    cka: Measurement
    """Linear CKA: 1 if the features are the same up to rotation and scale, about 0 if they are unrelated."""
    probe: Difference | None
    """Accuracy of a linear probe on the tuned model's features (b) and on the base's (a); None without labels."""
    images: int
    classes: tuple[str, ...] = ()
    """What the probe tells apart."""
    data: str
    """Name of the images."""
    sha256: str
    """Hash of the images as the models see them, and of their labels; only equal ones can be compared."""


class PairResults(Config):
    """What a run over pairs came to on its validation pairs, by the weights that were saved."""

    pairs: int
    accuracy_before: float
    accuracy_after: Measurement
    """Share of the pairs whose chosen answer is preferred, with its 95 % interval; an undecided pair counts half."""
    margin_before: float
    margin_after: float
    kl_from_base: float | None
    """KL(base || tuned) in nats per token of the answers of some of these pairs; None where all weights learned."""

    def describe(self) -> str:
        moved = "" if self.kl_from_base is None else f"; {self.kl_from_base:.4f} nats per token from the base"
        return (
            f"preference accuracy {self.accuracy_before:.1%} -> {self.accuracy_after.shown('.1%')} of "
            f"{self.pairs:,} pairs; "
            f"margin {self.margin_before:.3f} -> {self.margin_after:.3f}{moved}"
        )
