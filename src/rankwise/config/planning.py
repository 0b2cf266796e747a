"""A training as it is planned: an experiment whose rows and name may be missing yet."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rankwise.config.data import DataConfig
from rankwise.config.experiment import RUN_NAME, Experiment


class Planned(Experiment):
    """Reads the same files as an experiment."""

    data: DataConfig | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    run: Annotated[str, Field(pattern=RUN_NAME)] = "plan"
