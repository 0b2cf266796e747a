"""`rankwise plan`: what a training would take. With `--probe` this machine is measured first, which takes torch."""

from __future__ import annotations

from typing import Any

from rankwise.commands.several import refuse_several
from rankwise.config.experiment import Planned
from rankwise.forward.plan import plan as plan_of_config
from rankwise.planning.plan import Plan
from rankwise.planning.processes import ALONE, Processes
from rankwise.planning.time import Probe
from rankwise.runs.records import Callback, silent


def plan(config: Planned, *, processes: Processes = ALONE, **given: Any) -> Plan:
    """ConfigError for what several processes cannot train yet."""
    if processes.is_several:
        refuse_several(config)
    return plan_of_config(config, processes=processes, **given)


def run_probe(config: Planned, callback: Callback = silent) -> Probe:
    from rankwise.training.probe import probe

    return probe(config, callback)
