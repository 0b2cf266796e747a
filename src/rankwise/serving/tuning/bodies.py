"""A fine-tuning job as OpenAI's API describes it: each documented field has its effect here, or is refused by name with
the reason."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rankwise.config.base import Config, Number

Auto = Literal["auto"]
Epochs = Annotated[int, Field(ge=1, le=50, strict=True)]
Rows = Annotated[int, Field(ge=1, le=1024, strict=True)]
Multiplier = Annotated[Number, Field(gt=0, le=100)]
Key = Annotated[str, Field(min_length=1, max_length=64)]
Value = Annotated[str, Field(max_length=512)]
SUFFIX = r"^[A-Za-z0-9._-]{1,64}$"


class Hyperparameters(Config):
    """A value that is null counts as not given."""

    n_epochs: Auto | Epochs = "auto"
    """Passes over the rows."""
    batch_size: Auto | Rows = "auto"
    """Rows of one step."""
    learning_rate_multiplier: Auto | Multiplier = "auto"
    """Times the learning rate that suits the model."""

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class PairHyperparameters(Hyperparameters):
    beta: Auto | Annotated[Number, Field(gt=0, le=100)] = "auto"
    """How closely the model stays to the one before training."""


class Supervised(Config):
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class Dpo(Config):
    hyperparameters: PairHyperparameters = Field(default_factory=PairHyperparameters)


class MethodBody(Config):
    type: Literal["supervised", "dpo"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_reinforcement(cls, value: Any) -> Any:
        if isinstance(value, dict) and "reinforcement" in (value.get("type"), *(k for k, v in value.items() if v)):
            raise ValueError("reinforcement learning with graders is not trained here; use supervised or dpo")
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_method(self) -> MethodBody:
        other = self.dpo if self.type == "supervised" else self.supervised
        if other is not None:
            raise ValueError(f'the type is "{self.type}", and settings of another method are given')
        return self


class JobBody(Config):
    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(max_length=256)
    validation_file: str | None = Field(None, max_length=256)
    hyperparameters: Hyperparameters | None = None
    method: MethodBody | None = None
    suffix: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = None
    metadata: Annotated[dict[Key, Value], Field(max_length=16)] | None = None
    integrations: list[Any] | None = None

    @field_validator("suffix")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(SUFFIX, value):
            raise ValueError("write up to 64 letters, digits, dots, _ and -, since it is part of a model's name")
        return value

    @field_validator("integrations")
    @classmethod
    def _nobody_else(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError(
                "this server sends nothing to other services; the job's events and result file have its metrics"
            )
        return value

    @model_validator(mode="after")
    def _one_place(self) -> JobBody:
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError('"hyperparameters" is the earlier place of those in "method"; give one of them')
        return self

    @property
    def is_dpo(self) -> bool:
        return self.method is not None and self.method.type == "dpo"

    @property
    def chosen(self) -> Hyperparameters:
        if self.method is None:
            return self.hyperparameters or Hyperparameters()
        own = self.method.dpo if self.is_dpo else self.method.supervised
        return own.hyperparameters if own is not None else (PairHyperparameters() if self.is_dpo else Hyperparameters())
