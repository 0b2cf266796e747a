"""`rankwise plan`: what a training would take. With `--probe` this machine is measured first, which takes torch."""

from __future__ import annotations

import sys
from typing import Any

from rankwise.config.experiment import Experiment, Planned
from rankwise.errors import ConfigError
from rankwise.forward.plan import plan as plan_of_config
from rankwise.planning.plan import Plan
from rankwise.planning.processes import ONE_PROCESS, Processes
from rankwise.planning.time import Probe
from rankwise.runs.records import Callback, silent

REST = "Train in one process (without --processes or torchrun)."


def plan(config: Planned, *, processes: Processes = ONE_PROCESS, **settings: Any) -> Plan:
    """ConfigError for what several processes cannot train yet."""
    if processes.is_several:
        refuse_several(config)
    return plan_of_config(config, processes=processes, **settings)


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
