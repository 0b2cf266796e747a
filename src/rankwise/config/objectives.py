"""What an objective is as a setting: the models and rows that it is for, the other settings that have no effect with
it, its learning rate and its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rankwise.config.base import Config
from rankwise.config.data import DataConfig
from rankwise.config.incompatible import Compatible, problems
from rankwise.config.method import MethodConfig
from rankwise.config.models import BOTH, DECODER, ENCODER, IMAGES
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig

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


class ObjectiveSettings:
    """A default is what language models have."""

    name: ClassVar[str]
    learns = ""
    """What the model learns from a row."""
    nature = ""
    """The kind of model for which `auto` chooses this objective."""
    because = ""
    """Why it is, for a message; {0} is the model's name and {1} its kind."""
    texts = 1
    """How many texts a document has, each of which may have the largest length."""
    planned: ClassVar[Mapping[str, Any]] = {}
    """Settings of training that a plan counts with, whatever is given."""
    earliest = 1
    """The first step after which a result may be the best one."""

    def decided(self, nature: str, has_tags: Callable[[], bool]) -> ObjectiveSettings:
        """Itself; of `auto` the objective for a model of this nature and for its rows."""
        return self

    def suits(self, nature: str, has_tags: Callable[[], bool]) -> bool:
        """Whether `auto` is this objective."""
        return nature == self.nature

    def problem(self, nature: str, model: str) -> str | None:
        """Why a model of this nature cannot be trained so."""
        return next(iter(problems(Suited(objective=self.name, nature=nature, model=model), "nature")), None)

    def rows(self, data: DataConfig) -> DataConfig:
        """The settings by which a training reads its rows."""
        return data

    def rate(self, adapter: MethodConfig) -> float:
        """What the learning rate `auto` is at width 576."""
        return adapter.auto_rate

    def most_epochs(self, training: TrainingConfig, rows: int, *, has_validation: bool) -> int | None:
        """By default; None where they follow from nothing."""
        return None

    def defaults(
        self, training: TrainingConfig, validation: ValidationConfig, *, rows: int, has_validation: bool, by: str
    ) -> dict[str, Config]:
        """Parts of an experiment that follow from its `rows`, which training shows. `has_validation`: whether there are
        validation rows, of which the metric `by` says best what was learned. Where neither passes nor steps are given,
        the model learns until its validation stops improving."""
        epochs = self.most_epochs(training, rows, has_validation=has_validation)
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


class Undecided(ObjectiveSettings):
    """`auto`, until the model and the rows decide."""

    name = "auto"

    def decided(self, nature: str, has_tags: Callable[[], bool]) -> ObjectiveSettings:
        return next(one for one in reversed(OBJECTIVES.values()) if one.suits(nature, has_tags))


class OfAnswers(ObjectiveSettings):
    name = "causal-lm"
    learns = "the tokens of its answers"
    nature = DECODER

    def most_epochs(self, training: TrainingConfig, rows: int, *, has_validation: bool) -> int | None:
        """More of few rows than of many, where some are validated. Replay rows are drawn for two epochs beforehand."""
        most = min(ANSWER_EPOCHS, ANSWER_STEPS * training.rows_per_step(rows) // rows)
        return most if has_validation and most > FEWEST_EPOCHS and training.replay is None else None


class OfSequences(ObjectiveSettings):
    name = "sequence-to-sequence"
    learns = "its output, by the decoder of a model such as T5 or BART"
    texts = 2
    nature = BOTH
    because = "{0} is an encoder with a decoder ({1})"


class OfPairs(ObjectiveSettings):
    name = "preference"
    learns = "which of two answers is better"
    texts = 2

    def rows(self, data: DataConfig) -> DataConfig:
        return as_pairs(data)

    def rate(self, adapter: MethodConfig) -> float:
        return PREFERENCE_SHARE * adapter.auto_rate


class OfChoices(ObjectiveSettings):
    name = "multiple-choice"
    learns = "which of the choices of its question is right"
    texts = 4
    planned: ClassVar[Mapping[str, Any]] = {"backend": "eager"}


class OfClasses(ObjectiveSettings):
    """What classifiers share."""

    def rate(self, adapter: MethodConfig) -> float:
        return adapter.classifier_rate


class OfTexts(OfClasses):
    name = "sequence-classification"
    learns = "one class or number for its text"
    nature = ENCODER
    because = "{0} is an encoder ({1}), which generates no text"
    earliest = 0  # its head is fitted before the first step

    def rate(self, adapter: MethodConfig) -> float:
        return adapter.text_rate or adapter.classifier_rate

    def most_epochs(self, training: TrainingConfig, rows: int, *, has_validation: bool) -> int:
        """Passes. The best of them has the highest accuracy, not the lowest loss, since the loss grows with each sure
        answer to a row whose label is wrong."""
        return CLASS_EPOCHS if has_validation else WITHOUT_ROWS


class OfTags(OfClasses):
    name = "token-classification"
    learns = "a tag for each of its words"
    because = "the words of the rows have tags"

    def suits(self, nature: str, has_tags: Callable[[], bool]) -> bool:
        return has_tags()


class OfImages(OfClasses):
    name = "image-classification"
    learns = "one class or number for its image"
    nature = IMAGES
    because = "{0} is a vision model ({1})"

    def rate(self, adapter: MethodConfig) -> float:
        return adapter.image_rate or adapter.classifier_rate


OBJECTIVES: dict[str, ObjectiveSettings] = {
    one.name: one
    for one in (Undecided(), OfAnswers(), OfSequences(), OfPairs(), OfChoices(), OfTexts(), OfTags(), OfImages())
}
"""By name; `auto` tries the last first."""
LEARNED = ", ".join(f"{one.name} ({one.learns})" for one in OBJECTIVES.values() if one.learns)
ObjectiveName = Annotated[
    Literal[
        "auto", "causal-lm", "sequence-to-sequence", "preference", "multiple-choice", "sequence-classification",
        "token-classification", "image-classification",
    ],
    Field(description=f"The objectives are {LEARNED}."),
]  # fmt: skip
