"""Settings of a fine-tuning method, as the rest of the package sees them.

What differs between methods and needs no torch is answered here, so that nobody has to ask which method it is.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from rankwise.config.base import Config
from rankwise.config.models import ModelConfig


class MethodConfig(Config):
    artifact: ClassVar[Literal["adapter", "model"]]
    """What is written, and the folder of a finished run that it lies in."""
    base_dtype: ClassVar[Literal["float32"] | None] = None
    """The number format that the base must have, where the method needs one."""
    auto_rate: ClassVar[float]
    """What the learning rate `auto` is at width 576; training/schedules.py says why."""
    tags: ClassVar[tuple[str, ...]] = ()
    """Tags of the model card, beside those that every adapter has."""

    @property
    def label(self) -> str:
        """The method's name, for people."""
        raise NotImplementedError

    @property
    def written_as(self) -> str:
        """The method's name on a model card, which says what the files hold."""
        return self.label

    @property
    def needs_rows_of_weights(self) -> bool:
        """Whether only layers whose weight has one row for each output can be adapted."""
        return False

    def without_rows(self) -> Self:
        """The same settings with a start that needs no training rows."""
        return self

    def problem_with(self, base: ModelConfig) -> str | None:
        """Why this base model cannot be trained with this method, for a message."""
        return None
