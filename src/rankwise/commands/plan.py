"""`rankwise plan`: what a training would take. With `--probe` this machine is measured first, which takes torch."""

from __future__ import annotations

from rankwise.config.planning import Planned
from rankwise.forward.plan import plan as plan
from rankwise.planning.time import Probe
from rankwise.runs.records import Callback, silent


def run_probe(config: Planned, callback: Callback = silent) -> Probe:
    from rankwise.training.probe import probe

    return probe(config, callback)
