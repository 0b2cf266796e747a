"""The frozen tree of everything one training run was asked to do; a run stores it as spec.json."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rankwise.spec.adapters import LoraSpec
from rankwise.spec.data import DataSpec
from rankwise.spec.models import ModelSpec
from rankwise.spec.spec import Spec
from rankwise.spec.training import TrainingSpec

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Experiment(Spec):
    model: ModelSpec
    data: DataSpec
    run: Annotated[str, Field(pattern=RUN_NAME)]
    """The run's name: the folder `runs/NAME`."""
    adapter: LoraSpec = Field(default_factory=LoraSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
