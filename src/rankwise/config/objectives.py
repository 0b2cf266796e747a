"""What an objective is as a setting: the models and rows that it is for, the other settings that have no effect with
it, its learning rate and its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from rankwise.config.base import Config
from rankwise.config.data import DataConfig
from rankwise.config.incompatible import Compatible, problems
from rankwise.config.method import MethodConfig
from rankwise.config.models import BOTH, DECODER, ENCODER, IMAGES
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig

TAGGED = "rows with tags"
"""In place of a nature, where the rows decide and not the model."""
PREFERENCE_SHARE = 0.1
"""The learning rate for preference pairs, as a share of the one for answers (lab/preference.md)."""
CLASS_EPOCHS, WITHOUT_ROWS, PATIENCE = 10, 4, 2
"""Defaults for classifiers of texts (lab/classifiers.md): the most epochs with validation rows, the epochs without
them, and after how many validations without improvement training stops."""
FEWEST_EPOCHS, ANSWER_EPOCHS, ANSWER_STEPS = 2, 6, 100
"""Defaults for language models (lab/passes.md): the epochs of many rows, and with validation rows those of few, in at
most so many steps."""


def as_pairs(data: DataConfig) -> DataConfig:
    """These settings, with every row read as a pair of answers to one prompt."""
    pairs: dict[str, Any] = {"format": "preference"}
    sources = tuple(source.model_copy(update=pairs) for source in data.sources)
    apart = data.validation and data.validation.model_copy(update=pairs)
    own = pairs if data.path is not None else {}
    return data.model_copy(update=own | {"sources": sources, "validation": apart})


class Suited(Compatible):
    """A model for an objective, as the table of refusals compares them."""

    objective: str
    nature: str
    model: str


def _epochs_of_answers(training: TrainingConfig, rows: int, has_validation: bool) -> int | None:
    """More of few rows than of many, where some are validated. Replay rows are drawn for two epochs beforehand."""
    most = min(ANSWER_EPOCHS, ANSWER_STEPS * training.rows_per_step(rows) // rows)
    return most if has_validation and most > FEWEST_EPOCHS and training.replay is None else None


@dataclass(frozen=True)
class ObjectiveSettings:
    """A default is what language models have."""

    name: str
    learns: str = ""
    """What the model learns from a row."""
    nature: str = ""
    """The kind of model for which `auto` chooses this objective, or TAGGED, for rows with tags."""
    because: str = ""
    """Why it is, for a message; {0} is the model's name and {1} its kind."""
    texts: int = 1
    """How many texts a document has, each of which may have the largest length."""
    planned: Mapping[str, Any] = field(default_factory=dict)
    """Settings of training that a plan counts with, whatever is given."""
    earliest: int = 1
    """The first step after which a result may be the best one."""
    rows: Callable[[DataConfig], DataConfig] = lambda data: data
    """The settings by which a training reads its rows."""
    rate: Callable[[MethodConfig], float] = lambda adapter: adapter.auto_rate
    """What the learning rate `auto` is at width 576."""
    most_epochs: Callable[[TrainingConfig, int, bool], int | None] = lambda training, rows, has_validation: None
    """By default, for so many rows and with validation rows or without; None where they follow from nothing."""

    def decided(self, nature: str, has_tags: Callable[[], bool]) -> ObjectiveSettings:
        """Itself; of `auto` the objective for a model of this nature and for its rows."""
        if self.name != "auto":
            return self
        suited = (one for one in OBJECTIVES.values() if (has_tags() if one.nature == TAGGED else one.nature == nature))
        return next(suited)

    def problem(self, nature: str, model: str) -> str | None:
        """Why a model of this nature cannot be trained so."""
        return next(iter(problems(Suited(objective=self.name, nature=nature, model=model), "nature")), None)

    def defaults(
        self, training: TrainingConfig, validation: ValidationConfig, *, rows: int, has_validation: bool, by: str
    ) -> dict[str, Config]:
        """Parts of an experiment that follow from its `rows`, which training shows. `has_validation`: whether there are
        validation rows, of which the metric `by` says best what was learned. Where neither passes nor steps are given,
        the model learns until its validation stops improving."""
        epochs = self.most_epochs(training, rows, has_validation)
        if epochs is None or training.epochs or training.steps:
            return {}
        changes: dict[str, Any] = {}
        if has_validation and validation.keep == "last" and "keep" not in validation.model_fields_set:
            changes = {"keep": "best", "patience": validation.patience or PATIENCE}
            changes |= {"by": by} if by != validation.by and "by" not in validation.model_fields_set else {}
        return {
            "training": training.model_copy(update={"epochs": float(epochs)}),
            "validation": validation.model_copy(update=changes),
        }


OBJECTIVES = {one.name: one for one in (
    ObjectiveSettings(
        "image-classification", "one class or number for its image", IMAGES, "{0} is a vision model ({1})",
        rate=lambda adapter: adapter.image_rate or adapter.classifier_rate,
    ),
    ObjectiveSettings(
        "token-classification", "a tag for each of its words", TAGGED, "the words of the rows have tags",
        rate=lambda adapter: adapter.classifier_rate,
    ),
    ObjectiveSettings(
        "sequence-classification", "one class or number for its text", ENCODER,
        "{0} is an encoder ({1}), which generates no text", earliest=0,  # its head is fitted before the first step
        rate=lambda adapter: adapter.text_rate or adapter.classifier_rate,
        # passes: the best of them has the highest accuracy, not the lowest loss, since the loss grows with each sure
        # answer to a row whose label is wrong
        most_epochs=lambda training, rows, has_validation: CLASS_EPOCHS if has_validation else WITHOUT_ROWS,
    ),
    ObjectiveSettings(
        "multiple-choice", "which of the choices of its question is right", texts=4, planned={"backend": "eager"},
    ),
    ObjectiveSettings(
        "preference", "which of two answers is better", texts=2, rows=as_pairs,
        rate=lambda adapter: PREFERENCE_SHARE * adapter.auto_rate,
    ),
    ObjectiveSettings(
        "sequence-to-sequence", "its output, by the decoder of a model such as T5 or BART", BOTH,
        "{0} is an encoder with a decoder ({1})", texts=2,
    ),
    ObjectiveSettings("causal-lm", "the tokens of its answers", DECODER, most_epochs=_epochs_of_answers),
    ObjectiveSettings("auto"),
)}  # fmt: skip
"""By name, in the order in which `auto` tries them."""
LEARNED = ", ".join(f"{one.name} ({one.learns})" for one in reversed(OBJECTIVES.values()) if one.learns)
ObjectiveName = Annotated[
    Literal[
        "auto", "causal-lm", "sequence-to-sequence", "preference", "multiple-choice", "sequence-classification",
        "token-classification", "image-classification",
    ],
    Field(description=f"The objectives are {LEARNED}."),
]  # fmt: skip
