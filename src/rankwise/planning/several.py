"""What a plan says of its processes: how a step is dealt, what they send, and what a sharded base would take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankwise.planning.exchange import Exchange, Sharded, exchange, sharded
from rankwise.planning.plan import Plan
from rankwise.planning.processes import ALONE, Processes, rows_in_step


@dataclass(frozen=True)
class Several:
    processes: Processes
    rows: int
    """In a step of all processes."""
    largest_share: float
    """Of the tokens of a step, which the process has that all others wait for."""
    exchange: Exchange
    sharded: Sharded | None
    speedup: float | None
    """How many times as fast as one process a step is; None where the device's speed is not known."""

    @property
    def idle(self) -> int:
        """Processes that have no row of a step."""
        return max(0, self.processes.count - self.rows)


def several_of(plan: Plan) -> Several | None:
    """None for a process alone, and for a model whose training is not planned."""
    processes, training, rows = plan.processes, plan.config.training, plan.rows
    sums = exchange(processes, plan.device, plan.forecast.parameters.trainable)
    if sums is None or not plan.trained:
        return None
    alone, together = replace(plan, processes=ALONE).duration, plan.duration
    speedup = None if alone is None or together is None else alone.step.likely / together.step.likely
    return Several(
        processes, rows_in_step(training, rows), processes.largest_share(training, rows), sums,
        sharded(plan.forecast, processes, plan.device, plan.own_step.micro_batches), speedup,
    )  # fmt: skip
