"""What a plan says of its processes: how a step is dealt, what they add up, and what a sharded base would take.

    gradients   4 x parameters that learn: all gradients are float32
    sharded     base / N + the two largest groups: one that computes, and one that is gathered meanwhile

A group is a block, the embedding, or the rest. Where the base itself learns, its gradients and the optimizer's averages
are divided too, and one group's gradient is whole at a time. The buffer of the sums adds nothing to the peak:
activations are gone by then.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rankwise.planning.forecast import Forecast
from rankwise.planning.plan import Plan
from rankwise.planning.processes import Processes, rows_in_step
from rankwise.planning.stored_weights import DTYPE_BYTES, EXACT


@dataclass(frozen=True)
class Several:
    processes: Processes
    rows: int
    """In a step of all processes."""
    largest_share: float
    """Of the tokens of a step, which the process has that all others wait for."""
    gradients: int
    """Bytes that are added up in each step."""
    sharded_peak: int | None
    """Bytes in each process; None where the base is stored in fewer bits."""

    @property
    def idle(self) -> int:
        """Processes that have no row of a step."""
        return max(0, self.processes.count - self.rows)


def several_of(plan: Plan) -> Several | None:
    """None for a process alone, and for a model whose training is not planned."""
    processes, training, rows = plan.processes, plan.config.training, plan.rows
    if not processes.is_several or not plan.trained:
        return None
    return Several(
        processes, rows_in_step(training, rows), processes.largest_share(training, rows),
        EXACT * plan.forecast.parameters.trainable, sharded_peak(plan.forecast, processes),
    )  # fmt: skip


def sharded_peak(forecast: Forecast, processes: Processes) -> int | None:
    job, count = forecast.job, processes.count
    if job.storage != "none":
        return None
    groups = sorted(_groups(forecast).values())
    divided, gathered = sum(groups), sum(groups[-2:])
    if job.trains_base:  # float32: gradients are as large as weights, and each average is too
        divided, gathered = (4 + job.averages) * divided, gathered + groups[-1]
    return round(forecast.peak - max(0.0, (1 - 1 / count) * divided - gathered))


def _groups(forecast: Forecast) -> dict[int | str, float]:
    """Bytes of the base's weights that are gathered together; a tied embedding belongs to the rest."""
    job, shape = forecast.job, forecast.shape
    tied = {layer.shares for layer in shape.layers}
    sizes: defaultdict[int | str, float] = defaultdict(float)
    for layer in shape.layers:
        outside = layer.path if layer.kind == "embedding" and layer.path not in tied else "rest"
        sizes[outside if layer.block is None else layer.block] += DTYPE_BYTES[job.dtype] * layer.parameters
    return dict(sizes)
