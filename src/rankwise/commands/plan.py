"""`rankwise plan`: what a training would take. With `--probe` this machine is measured first, which takes torch."""

from __future__ import annotations

from itertools import islice
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.config.experiment import Planned
from rankwise.errors import DataError
from rankwise.forward.plan import plan as plan_of_config
from rankwise.planning.plan import Plan
from rankwise.planning.processes import ONE_PROCESS, Processes, refuse_several
from rankwise.planning.time import Probe
from rankwise.rows.forms.columns import renamed
from rankwise.rows.sources import open_source, raw_records
from rankwise.runs.records import Callback, silent


def plan(config: Planned, *, processes: Processes = ONE_PROCESS, **settings: Any) -> Plan:
    """ConfigError for what several processes cannot train yet."""
    if processes.is_several:
        refuse_several(config.model)
    return plan_of_config(config, processes=processes, **settings)


def run_probe(config: Planned, callback: Callback = silent) -> Probe:
    from rankwise.training.probe import probe

    return probe(config, callback)


def refuse_columns(data: str, columns: dict[str, str]) -> None:
    """DataError where the first row of a file cannot be read, or has not the columns that these fields are named."""
    config = DataConfig(path=data, columns=columns)
    for where, row in islice(raw_records(open_source(config, config.all_sources[0]).parts[0]), 1):
        if isinstance(row, DataError):
            raise row
        renamed(row, columns, where)
