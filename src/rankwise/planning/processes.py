"""N processes that share the rows of each step (training/world.py): what each of them has, computes and waits for.

share       rows are dealt by their tokens (rows/encoded/dealing.py); a step waits for the share with the most tokens
cores       without cards, each process has 1/N of the cores and the memory of its machine
memory      that of a process alone with 1/N of the rows of a step: each has the whole base, and what learns
step        seconds of the largest share; adding up the gradients comes on top and is not counted
gradients   4 x parameters that learn: all gradients are float32
sharded     base / N + the two largest groups: one that computes, and one that is gathered meanwhile

A group is a block, the embedding, or the rest. Where the base itself learns, its gradients and the optimizer's averages
are divided too, and one group's gradient is whole at a time. The buffer of the sums adds nothing to the peak:
activations are gone by then.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from random import Random

from rankwise.config.incompatible import REST
from rankwise.config.incompatible import problems as problems_of
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError
from rankwise.planning.devices import Device, graphics_cards
from rankwise.planning.forecast import Forecast
from rankwise.planning.rows import PlannedRows
from rankwise.planning.stored_weights import DTYPE_BYTES
from rankwise.planning.time import Probe, Speed, Step
from rankwise.rows.encoded.dealing import deal
from rankwise.system.processor import usable_cores

SHARED_ROWS = 64
"""Steps that are dealt to see how much the largest share has."""


@dataclass(frozen=True)
class Processes:
    """`count` of them on `nodes` machines, as many on each: a training may have several, and a plan has one."""

    count: int = 1
    nodes: int = 1

    @property
    def is_several(self) -> bool:
        return self.count > 1

    @property
    def each(self) -> int:
        """On one machine."""
        return -(-self.count // self.nodes)

    def part_of(self, device: Device, *, here: bool) -> Device:
        """What each process has of a device. ConfigError with all that cannot be; `here` is a device of this
        machine."""
        if not self.is_several:
            return device
        problems: list[str] = []
        if device.kind == "apple":
            problems.append(f"several processes train on CUDA GPUs or processors, not on {device.name}.")
        cards = max(1, len(graphics_cards())) if here and device.kind != "processor" else self.count
        if self.count > cards:
            problems.append(f"--processes {self.count} needs {self.count} GPUs on this machine, which has {cards}.")
        if problems:
            raise ConfigError(problems)
        return device.with_memory(device.memory // self.count) if device.kind == "processor" else device

    def of_one(self, training: TrainingConfig, rows: PlannedRows | None) -> TrainingConfig:
        """The settings of a process alone that would have as many rows in a step."""
        if not self.is_several:
            return training
        return training.model_copy(update={"batch_size": -(-rows_in_step(training, rows) // self.count)})

    def largest_share(self, training: TrainingConfig, rows: PlannedRows | None) -> float:
        """The largest share of a step's tokens that one process has, as the mean over steps whose rows are dealt as in
        training."""
        count = rows_in_step(training, rows)
        lengths = (rows.lengths if rows is not None else []) or [1]
        drawn, shares = Random(0), []
        for _ in range(SHARED_ROWS if len(set(lengths)) > 1 else 1):
            step = drawn.choices(lengths, k=count)
            largest = max(sum(step[row] for row in share) for share in deal(step, self.count))
            shares.append(largest / sum(step))
        return sum(shares) / len(shares)

    def slowest(self, step: Step, training: TrainingConfig, rows: PlannedRows | None) -> Step:
        """The part of a step that the process with the largest share computes."""
        if not self.is_several:
            return step
        share = self.largest_share(training, rows)
        tokens = share * step.tokens
        pieces = max(1.0, math.ceil(tokens / training.max_batch_tokens))
        return replace(step, operations=share * step.operations, tokens=tokens, micro_batches=pieces)

    def speed(self, speed: Speed | Probe, device: Device) -> Speed | Probe:
        """The speed of one process, where all cores together have `speed`; a GPU belongs to one process alone."""
        if not self.is_several or device.kind != "processor":
            return speed
        part = self.part_of_cores
        if isinstance(speed, Probe):
            return replace(speed, per_token=speed.per_token / part, unpacking=speed.unpacking / part)
        unpacking = None if speed.unpacking is None else speed.unpacking.times(part)
        return replace(speed, rate=speed.rate * part, unpacking=unpacking)

    @property
    def part_of_cores(self) -> float:
        """The share of a machine's cores that one process has."""
        cores = usable_cores()
        return min(max(1, cores // self.each) / cores, 1 / self.each)


ONE_PROCESS = Processes()


def rows_in_step(training: TrainingConfig, rows: PlannedRows | None) -> int:
    """How many rows all processes together train on in one step."""
    return training.batch_size if rows is None else training.rows_per_step(rows.count)


def sharded_peak(forecast: Forecast, processes: Processes) -> int | None:
    count = processes.count
    if forecast.storage != "none":
        return None
    groups = sorted(_groups(forecast).values())
    divided, gathered = sum(groups), sum(groups[-2:])
    gradients, averages = forecast.method.base_gradients, 2 + forecast.method.averages  # each as large as the weights
    divided, gathered = (1 + gradients * (1 + averages)) * divided, gathered + gradients * groups[-1]
    return round(forecast.peak - max(0.0, (1 - 1 / count) * divided - gathered))


def _groups(forecast: Forecast) -> dict[int | str, float]:
    """Bytes of the base's weights that are gathered together; a tied embedding belongs to the rest."""
    shape = forecast.shape
    tied = {layer.shares for layer in shape.layers}
    sizes: defaultdict[int | str, float] = defaultdict(float)
    for layer in shape.layers:
        outside = layer.path if layer.kind == "embedding" and layer.path not in tied else "rest"
        sizes[outside if layer.block is None else layer.block] += DTYPE_BYTES[forecast.dtype] * layer.parameters
    return dict(sizes)


def refuse_several(base: ModelConfig) -> None:
    """ConfigError with all that needs one process."""
    problems = problems_of(base, "processes")
    if sys.platform == "win32":
        problems.append(f"several processes cannot train with Windows yet. {REST}")
    if problems:
        raise ConfigError(problems)
