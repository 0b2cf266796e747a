"""Settings of trackers: other programs that receive a run's records while it trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from rankwise.config.base import NAME, Config, Flag

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
WITH_PROJECTS = ("wandb", "mlflow", "trackio")


class TrackingConfig(Config):
    """Programs that receive the run's records in addition to its own log. They do not change what is trained."""

    log_to: Annotated[tuple[TrackerName, ...], Flag("--log-to")] = ()
    """Trackers that receive the run's records, separated by commas: tensorboard, wandb, mlflow, trackio. Each is an
    extra of the package (`pip install 'rankwise[tensorboard]'`) and writes to this machine unless its own settings name
    a server."""
    project: Annotated[str, Field(pattern=NAME)] = "rankwise"
    """Name of the project of W&B and trackio, and of the experiment of MLflow, in which the run appears."""

    @field_validator("log_to", mode="before")
    @classmethod
    def _several_in_one(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("log_to")
    @classmethod
    def _each_once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if twice := [name for name in TRACKERS if value.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice")
        return value

    @model_validator(mode="after")
    def _project_has_an_effect(self) -> Self:
        if self.project != type(self).model_fields["project"].default and not set(self.log_to) & set(WITH_PROJECTS):
            raise ValueError("project has no effect, because log_to names neither wandb nor mlflow nor trackio")
        return self
