"""A training that Ctrl-C interrupts after a step, and that goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.errors import Interrupted
from rankwise.runs.records import Event, StepRecord


def interrupt(experiment: Experiment, step: int) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StepRecord) and event.step == step:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(experiment, callback=stop)


def whole_and_resumed(experiment: Callable[[str], Experiment], step: int, name: str = "run") -> list[bytes]:
    """The weights that a training writes, and those of the same training interrupted after a step and resumed. The
    experiment is given the name of its run."""
    whole = train(experiment(f"{name}-whole"))
    interrupt(experiment(f"{name}-part"), step)
    part = train(experiment(f"{name}-part"), resume=True)
    return [next(each.result.glob("*.safetensors")).read_bytes() for each in (whole, part)]
