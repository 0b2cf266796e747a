"""Settings of a planned training: an experiment whose rows and run name may still be missing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rankwise.config.data import DataConfig
from rankwise.config.experiment import RUN_NAME, Experiment


class Planned(Experiment):
    """An experiment to plan. The files that describe it are the same."""

    data: DataConfig | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    run: Annotated[str, Field(pattern=RUN_NAME)] = "plan"
