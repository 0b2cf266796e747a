"""`rankwise plan`: what a training would take. With `--probe` this machine is measured first, which takes torch.

What `train --from` and `plan --from` take over from an adapter before a model is loaded, its base and its settings, is
here too. Nothing of torch is imported unless there is an adapter to look at.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from rankwise.config.experiment import Experiment, Planned
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError
from rankwise.forward.plan import plan as plan_of_config
from rankwise.planning.plan import Plan
from rankwise.planning.processes import ALONE, Processes
from rankwise.planning.time import Probe
from rankwise.runs.directory import find_run
from rankwise.runs.records import Callback, silent
from rankwise.runs.snapshot import RunSnapshot

_Kind = TypeVar("_Kind", bound=Experiment)

REST = "Train in one process (without --processes or torchrun)."


def plan(config: Planned, *, processes: Processes = ALONE, **given: Any) -> Plan:
    """ConfigError for what several processes cannot train yet."""
    if processes.is_several:
        refuse_several(config)
    return plan_of_config(config, processes=processes, **given)


def refuse_several(experiment: Experiment) -> None:
    """ConfigError with all that needs one process."""
    device = experiment.base.device
    refused = {f"model.device={device}": device not in ("auto", "cpu", "cuda"), "Windows": sys.platform == "win32"}
    problems = [
        f"several processes cannot train with {name} yet. {REST}" for name, is_used in refused.items() if is_used
    ]
    if problems:
        raise ConfigError(problems)


def run_probe(config: Planned, callback: Callback = silent) -> Probe:
    from rankwise.training.probe import probe

    return probe(config, callback)


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
