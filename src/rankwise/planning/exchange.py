"""What processes that train together send each other in a step, and how long it takes.

    gradients   4 x parameters that learn: all gradients are float32
    sent        2 (N - 1) / N x gradients by each process, in a ring
    sums        sent / rate + parts x (start + 2 (N - M) hops inside M machines + 2 (M - 1) hops between them)
                rate is the slowest link's; a part has AT_ONCE numbers
    totals      2 small gathers through gloo, N - 1 hops each

Where the base is sharded over the processes (its blocks; all other weights stay whole),

    memory      blocks / N + the largest block, gathered for its pass
    received    2 (N - 1) / N x blocks in each micro-batch: gathered forward, and again backward

and where the base learns, its gradients and the optimizer's averages are divided too, and its gradients are sent in
each micro-batch. The buffer of the sums adds nothing to the peak: activations are gone by then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankwise.planning.devices import Device
from rankwise.planning.estimate import Estimate
from rankwise.planning.forecast import Forecast
from rankwise.planning.links import LOOPBACK, OVER_TCP, Link, link_of, network_of
from rankwise.planning.processes import Processes
from rankwise.planning.stored_weights import EXACT, packed_layers, stored_bytes

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
    totals = LOOPBACK.hop.times(TOTALS * (count - nodes)).plus(OVER_TCP.times(TOTALS * (nodes - 1)))
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
    """With the base's blocks sharded over all processes."""

    peak: int
    """Bytes in each process."""
    received: float
    """Bytes, by each process in a step."""
    seconds: Estimate
    """That receiving takes where nothing overlaps with it."""


def sharded(forecast: Forecast, processes: Processes, device: Device, micro_batches: float) -> Sharded | None:
    """None where nothing can be: one process, or weights that are pages of a file."""
    job, count = forecast.job, processes.count
    if not processes.is_several or job.given_back or job.storage == "file":
        return None
    sizes = _blocks(forecast).values()
    blocks, largest = sum(sizes), max(sizes, default=0.0)
    parts, sums = (4 + job.averages, 1) if job.trains_base else (1, 0)
    saved = (1 - 1 / count) * parts * blocks - (1 + sums) * largest
    received = (2 + sums) * (count - 1) / count * blocks * micro_batches
    seconds = slowest_of(links_of(processes, device)).seconds(received)
    return Sharded(round(forecast.peak - max(0.0, saved)), received, seconds)


def _blocks(forecast: Forecast) -> dict[int, float]:
    """Bytes of the base's weights in each block."""
    job, shape = forecast.job, forecast.shape
    number = EXACT if job.dtype == "float32" else EXACT // 2
    packed = {layer.path for layer in packed_layers(shape, job.storage)}
    sizes: dict[int, float] = {}
    for layer in shape.layers:
        if layer.block is not None:
            size = stored_bytes(layer, job.storage) if layer.path in packed else number * layer.parameters
            sizes[layer.block] = sizes.get(layer.block, 0.0) + size
    return sizes
