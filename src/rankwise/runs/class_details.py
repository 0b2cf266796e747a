"""Details of a classifier's evaluation: figures of each class, confusions, calibration, and the rows that are wrong."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rankwise.config.base import Config
from rankwise.runs.measured import Measured

SUMMARISED = 24
"""Wrong rows that `rankwise evaluate --json` prints."""
LARGEST_THUMBNAIL = 24_000
Thumbnail = Annotated[
    str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*$", max_length=LARGEST_THUMBNAIL)
]
"""A small picture as a data: URI."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class OneClass(Config):
    """Figures of one class: `rows` have it, and `predicted` rows are said to have it."""

    name: str
    rows: Count
    predicted: Count
    precision: Measured | None
    """The share of the predicted rows that are right; None if there are none."""
    recall: Measured | None
    """The share of the class's rows that are right; None if there are none."""
    f1: Measured | None
    """None if the class never occurs."""


class CalibrationBin(Config):
    """The rows whose predicted class has a probability in a range that contains its upper end."""

    low: Share
    high: Share
    rows: Count
    confidence: Share
    """The mean probability of the predicted class."""
    right: Measured
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
