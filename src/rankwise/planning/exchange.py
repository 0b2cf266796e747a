"""What processes that train together send each other in a step, and how long it takes.

    gradients   4 x parameters that learn: all gradients are float32
    sent        2 (N - 1) / N x gradients by each process, in a ring
    sums        sent / rate + parts x (start + 2 (N - M) hops inside M machines + 2 (M - 1) hops between them)
                rate is the slowest link's; a part has AT_ONCE numbers
    totals      2 small gathers through gloo, N - 1 hops each

With a base in full that is sharded over the processes, group by group (each block, the embedding, the rest),

    memory      base / N + the two largest groups: one that computes, and one that is gathered meanwhile
    received    2 (N - 1) / N x base in each micro-batch: gathered forward, and again backward

and where the base itself learns, its gradients and the optimizer's averages are divided too, one group's gradient is
whole at a time, and gradients are exchanged in each micro-batch: 3 instead of 2.

The buffer of the sums adds nothing to the peak: activations are gone by then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from rankwise.planning.devices import Device
from rankwise.planning.estimate import Estimate
from rankwise.planning.forecast import Forecast
from rankwise.planning.links import LOOPBACK, OVER_TCP, Link, link_of, network_of
from rankwise.planning.processes import Processes
from rankwise.planning.stored_weights import DTYPE_BYTES, EXACT

AT_ONCE, TOTALS = 1 << 24, 2
"""Numbers of a sum at most, as training/world.py has it (a test compares both), and small gathers of a step."""


@dataclass(frozen=True)
class Exchange:
    gradients: int
    """Bytes."""
    sent: float
    """Bytes, by each process."""
    links: tuple[Link, ...]
    """Inside a machine and between machines, as far as there are any."""
    seconds: Estimate

    @property
    def slowest(self) -> Link:
        return slowest_of(self.links)


def exchange(processes: Processes, device: Device, trainable: int) -> Exchange | None:
    """None for a process alone."""
    if not processes.is_several:
        return None
    count, nodes, links = processes.count, processes.nodes, links_of(processes, device)
    gradients, parts = EXACT * trainable, max(1, math.ceil(trainable / AT_ONCE))
    waits = Estimate.exactly(max(link.start for link in links))
    inside = LOOPBACK.hop if device.kind == "processor" else OVER_TCP  # processors are busy with the training itself
    totals = inside.times(TOTALS * (count - nodes)).plus(OVER_TCP.times(TOTALS * (nodes - 1)))
    for link in links:
        waits = waits.plus(link.hop.times(2 * (nodes - 1 if link.name == "network" else count - nodes)))
    sent = 2 * (count - 1) / count * gradients
    seconds = slowest_of(links).seconds(sent).plus(waits.times(parts)).plus(totals)
    return Exchange(gradients, sent, links, seconds)


def links_of(processes: Processes, device: Device) -> tuple[Link, ...]:
    inside = (link_of(device, processes.link),) if processes.each > 1 else ()
    return (*inside, network_of(processes.gigabits)) if processes.nodes > 1 else inside


def slowest_of(links: tuple[Link, ...]) -> Link:
    return min(links, key=lambda link: link.reached.likely)


@dataclass(frozen=True)
class Sharded:
    """With the base sharded over all processes."""

    peak: int
    """Bytes in each process."""
    received: float
    """Bytes, by each process in a step."""
    seconds: Estimate
    """That receiving takes where nothing overlaps with it."""


def sharded(forecast: Forecast, processes: Processes, device: Device, micro_batches: float) -> Sharded | None:
    """None where the base is stored in fewer bits, and for one process."""
    job, count = forecast.job, processes.count
    if not processes.is_several or job.storage != "none":
        return None
    groups = sorted(_groups(forecast).values())
    base, gathered = sum(groups), sum(groups[-2:])
    divided, times = base, 2
    if job.trains_base:  # float32: gradients are as large as weights, and each average is too
        divided, gathered, times = (4 + job.averages) * base, gathered + groups[-1], 3
    received = times * (count - 1) / count * base * micro_batches
    seconds = slowest_of(links_of(processes, device)).seconds(received)
    return Sharded(round(forecast.peak - max(0.0, (1 - 1 / count) * divided - gathered)), received, seconds)


def _groups(forecast: Forecast) -> dict[int | str, float]:
    """Bytes of the base's weights that are gathered together; a tied embedding belongs to the rest."""
    job, shape = forecast.job, forecast.shape
    tied = {layer.shares for layer in shape.layers}
    sizes: defaultdict[int | str, float] = defaultdict(float)
    for layer in shape.layers:
        outside = layer.path if layer.kind == "embedding" and layer.path not in tied else "rest"
        sizes[outside if layer.block is None else layer.block] += DTYPE_BYTES[job.dtype] * layer.parameters
    return dict(sizes)
