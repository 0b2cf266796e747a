"""All settings of one training run, as one frozen value, with those of trackers. A run stores them as config.json."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from rankwise.config.adapters import METHODS, Adapting, LoraConfig
from rankwise.config.base import NAME, Config, Flag, JsonObject, Label, Separated
from rankwise.config.classification import ClassificationConfig, PreferenceConfig
from rankwise.config.data import INFER, DataConfig
from rankwise.config.images import ImagesConfig
from rankwise.config.incompatible import Compatible
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import OBJECTIVES, ObjectiveName, ObjectiveSettings
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig

RUN_NAME = NAME
LONGEST_STEM = 40


def named_after(text: str, otherwise: str) -> str:
    """What a run may be called after a file or folder, whose name may have spaces and letters of all scripts."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:LONGEST_STEM].strip("._-")
    return name if re.fullmatch(RUN_NAME, name) else otherwise


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


class TrackingConfig(Compatible):
    """Programs that receive the run's records in addition to its own log. They do not change what is trained."""

    sections = ("tracking",)
    log_to: Annotated[tuple[TrackerName, ...], Separated, Flag("--log-to")] = ()
    """Experiment trackers, separated by commas: tensorboard, wandb, mlflow, trackio. Each needs its extra (`pip
    install "rankwise[tensorboard]"`) and writes to this machine unless its own settings name a server."""
    project: Annotated[str, Field(pattern=NAME)] = "rankwise"
    """Name of the project of W&B and trackio, and of the experiment of MLflow, in which the run appears."""

    @field_validator("log_to")
    @classmethod
    def _each_once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if twice := [name for name in TRACKERS if value.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice")
        return value


@dataclass(frozen=True)
class RowSettings:
    """What decides what a row means: where the rows lie, and what is learned of them."""

    data: DataConfig
    base: ModelConfig
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    seed: int = 0


class Experiment(Compatible):
    """All settings of one training run."""

    model: ModelConfig
    """The base model."""
    data: DataConfig
    """The training and validation rows."""
    objective: Annotated[ObjectiveName, Flag("--objective", "by the model"), Label("What is learned", "rows")] = "auto"
    """What the model learns from a row. `auto` chooses image-classification for a vision model, token-classification
    for rows with tags or spans, sequence-classification for a text encoder such as BERT, sequence-to-sequence for an
    encoder-decoder such as T5 or BART, and causal-lm for everything else."""
    classification: ClassificationConfig = Field(default_factory=ClassificationConfig)
    """What a classifier predicts."""
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig)
    """How pairs of answers are learned."""
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    """The size of images, and how training varies them."""
    run: Annotated[str, Field(pattern=RUN_NAME), Flag("--run"), Label("Name", "run")]
    """Name of the run. Its folder is `runs/NAME`."""
    adapter: Annotated[Adapting, Flag("--method", "lora", key="method")] = Field(default_factory=LoraConfig)
    """Fine-tuning method, with its settings."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How the run is trained."""
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    """How the run is measured while it trains."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Other programs that receive the run's records."""

    @model_validator(mode="before")
    @classmethod
    def _over_recipe(cls, value: Any) -> Any:
        """Take from the recipe the training, adapter and model settings that were not given."""
        data = value.get("data") if isinstance(value, dict) else None
        name = data.get("recipe") if isinstance(data, dict) else getattr(data, "recipe", None)
        if not isinstance(name, str) or name not in RECIPES:
            return value
        settings, model = recipe_named(name).settings, value.get("model")
        parts = {part: _over(settings.get(part, {}), value.get(part)) for part in ("training", "adapter")}
        named = {"name": os.fspath(model)} if isinstance(model, str | os.PathLike) else model
        return value | parts | ({} if model is None else {"model": _over(settings.get("model", {}), named)})

    @property
    def objective_settings(self) -> ObjectiveSettings:
        return OBJECTIVES[self.objective]

    def with_defaults(self, *, rows: int, has_validation: bool, by: str) -> Self:
        """What the rows of a training whose objective is decided say of its settings."""
        return self.model_copy(update=self.objective_settings.defaults(
            self.training, self.validation, rows=rows, has_validation=has_validation, by=by
        ))  # fmt: skip

    @property
    def rows(self) -> RowSettings:
        return RowSettings(
            self.data, self.base, self.classification, self.preference, self.images, seed=self.training.seed
        )

    @property
    def base(self) -> ModelConfig:
        """The base model as the method loads it."""
        return self.adapter.loaded(self.model)

    @property
    def explicit(self) -> JsonObject:
        """The settings that were given, as JSON to be read again, with the method's name. Others have defaults that
        depend on the rows."""
        settings = self.model_dump(mode="json", exclude_unset=True)
        return settings | {"adapter": settings.get("adapter", {}) | {"method": self.adapter.method}}

    @property
    def auto_rate(self) -> float:
        """The learning rate for `auto` at hidden size 576."""
        return self.objective_settings.rate(self.adapter)


def places_in(settings: JsonObject) -> list[tuple[JsonObject, str]]:
    """Where the settings of an experiment, as JSON, name something that is no setting: a model, an adapter, a task, a
    file, a folder. Each mapping that does, and its key."""
    data, anchor = settings["data"], settings["training"]["anchor"] or {}
    replay = (settings["training"]["replay"] or {}).get("data") or {}
    places = [(one, "path") for one in (data, *data["sources"], data["validation"] or {}, replay)]
    places += [(settings["model"], "name"), (settings["adapter"], "start_from"), (anchor, "text"), (anchor, "tasks")]
    places += [(data, "answer_schema"), (data, "answer_grammar")]
    return [(part, key) for part, key in places if part.get(key) and part[key] != INFER]


def _over(under: dict[str, Any], values: Any) -> Any:
    if values is None:
        return under
    if isinstance(values, Config):  # only what was set explicitly, not the defaults
        values = values.model_dump(include={*values.model_fields_set, "method"} & values.__class__.model_fields.keys())
    if not isinstance(values, dict):
        return values
    if (method := METHODS.get(values.get("method", ""))) is not None:  # the settings of recipes are written for LoRA
        under = {key: value for key, value in under.items() if key in method.model_fields}
    under = {key: value for key, value in under.items() if key != "epochs" or values.get("steps") is None}
    return under | values


class Planned(Experiment):
    """An experiment to plan: `data` and `run` are optional. It reads the same settings files."""

    data: DataConfig | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    run: Annotated[str, Field(pattern=RUN_NAME)] = "plan"
