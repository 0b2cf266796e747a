"""The frozen tree of everything one training run was asked to do; a run stores it as config.json."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.base import Config
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig

OTHERS: dict[str, type[Config]] = {"adalora": AdaLoraConfig, "full": FullConfig}
"""Methods that a recipe's settings of an adapter were not written for."""
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _method(value: Any) -> Any:
    return value.get("method", "lora") if isinstance(value, dict) else getattr(value, "method", None)


Adapting = Annotated[
    Annotated[LoraConfig, Tag("lora")] | Annotated[AdaLoraConfig, Tag("adalora")] | Annotated[FullConfig, Tag("full")],
    Discriminator(_method, custom_error_type="method", custom_error_message="The method is lora, adalora or full"),
]


class Experiment(Config):
    model: ModelConfig
    data: DataConfig
    run: Annotated[str, Field(pattern=RUN_NAME)]
    """The run's name: the folder `runs/NAME`."""
    adapter: Adapting = Field(default_factory=LoraConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: ValidationConfig = Field(default_factory=ValidationConfig)

    @model_validator(mode="before")
    @classmethod
    def _over_recipe(cls, value: Any) -> Any:
        """A recipe's settings of training and adapter lie under those that were given."""
        data = value.get("data") if isinstance(value, dict) else None
        name = data.get("recipe") if isinstance(data, dict) else getattr(data, "recipe", None)
        if not isinstance(name, str) or name not in RECIPES:
            return value
        settings = recipe_named(name).settings
        return value | {part: _over(settings.get(part, {}), value.get(part)) for part in ("training", "adapter")}

    @model_validator(mode="after")
    def _whole_model_can_learn(self) -> Self:
        if not isinstance(self.adapter, FullConfig):
            return self
        if self.model.dtype == "bfloat16":
            raise ValueError(
                'The setting "model.dtype" is bfloat16 and the method is full: small steps of weights in bfloat16 '
                "would be rounded away. Leave it out; weights that learn are held in float32"
            )
        if self.model.trust_code is not None:
            raise ValueError(
                'The setting "model.trust_code" is given and the method is full: the model that it writes could not be '
                "loaded without code of the base's folder. Train an adapter"
            )
        return self

    @model_validator(mode="after")
    def _rows_to_measure_with(self) -> Self:
        asked = self.evaluation.asked_of_rows
        if self.data is None:  # of a plan
            return self
        if asked and not self.data.held_out and self.data.evaluation is None:
            raise ValueError(
                f"rows to measure with are missing: evaluation.{asked[0]} is nothing without them. Name them by "
                "data.held_out or data.evaluation"
            )
        return self

    @property
    def base(self) -> ModelConfig:
        """The model as it is loaded: weights that learn are float32 on every device."""
        learns = isinstance(self.adapter, FullConfig)
        return self.model.model_copy(update={"dtype": "float32"}) if learns else self.model


def _over(under: dict[str, Any], given: Any) -> Any:
    if given is None:
        return under
    if isinstance(given, Config):  # what was not said when it was made is not said now
        given = given.model_dump(include={*given.model_fields_set, "method"} & given.__class__.model_fields.keys())
    if not isinstance(given, dict):
        return given
    if (other := OTHERS.get(given.get("method", ""))) is not None:
        under = {key: value for key, value in under.items() if key in other.model_fields}
    under = {key: value for key, value in under.items() if key != "epochs" or given.get("steps") is None}
    return under | given
