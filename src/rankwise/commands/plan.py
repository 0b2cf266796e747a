"""`rankwise plan`: what a training would take. With `--probe` this machine is measured first, which takes torch."""

from __future__ import annotations

from typing import Any

from rankwise.commands.several import refuse_several
from rankwise.config.planning import Planned
from rankwise.errors import ConfigError
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


def processes_of(count: int | None, nodes: int | None, link: str | None, gigabits: float | None) -> Processes:
    """As they were given; ConfigError for those that have no effect with one process."""
    count = count or 1
    given = {"--nodes": nodes, "--link": link, "--network": gigabits}
    without = [f"{name} has no effect with one process; give --processes too." for name in given if given[name]]
    if count < 2 and without:
        raise ConfigError(without)
    return Processes(count, nodes or 1, link, gigabits)


def run_probe(config: Planned, callback: Callback = silent) -> Probe:
    from rankwise.training.probe import probe

    return probe(config, callback)
