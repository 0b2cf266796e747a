"""What `train --from` and `plan --from` take over from an adapter before a model is loaded: its base and its settings.

Nothing of torch is imported unless there is an adapter to look at.
"""

from __future__ import annotations

from typing import Any, TypeVar

from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.runs.directory import find_run
from rankwise.runs.snapshot import RunSnapshot

_Kind = TypeVar("_Kind", bound=Experiment)


def base_of_start(start_from: str, run: Any = None) -> ModelConfig:
    """The base model of the adapter that a new training begins with. `run` is the training's own name."""
    from rankwise.methods.starting import base_named_by

    return base_named_by(start_from)


def base_of_run(start_from: str, run: Any = None) -> ModelConfig:
    """The same for a training that is resumed: it is recorded, and the adapter may be gone."""
    begun = find_run(run) if isinstance(run, str) else None
    return base_of_start(start_from) if begun is None else RunSnapshot.of(begun).experiment.model


def as_continued(planned: _Kind) -> _Kind:
    """The settings with those of the adapter in `adapter.start_from`, or as they are where none is named."""
    if planned.adapter.start_from is None:
        return planned
    from rankwise.methods.starting import planned_with

    return planned.model_copy(update={"adapter": planned_with(planned.adapter)})
