"""N processes that share the rows of each step (training/world.py): what each of them has, computes and waits for.

share       rows are dealt by their tokens (data/dealing.py); a step waits for the share with the most tokens
cores       without cards, each process has 1/N of the cores and the memory of its machine
memory      that of a process alone with 1/N of the rows of a step: each has the whole base, and what learns
step        seconds of the largest share; adding up the gradients comes on top and is not counted
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from rankwise.config.training import TrainingConfig
from rankwise.data.dealing import deal
from rankwise.errors import ConfigError
from rankwise.planning.devices import Device
from rankwise.planning.rows import PlannedRows
from rankwise.planning.time import Probe, Speed, Step
from rankwise.runs.manifest import usable_cores

DEALT = 64
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

    def check(self, device: Device, cards: int | None) -> None:
        """ConfigError with all that cannot be; `cards` are those of this machine, None where it is not meant."""
        problems: list[str] = []
        if device.kind == "apple" and self.is_several:
            problems.append(f"several processes train on CUDA GPUs or processors, not on {device.name}.")
        if cards is not None and self.each > max(1, cards):
            problems.append(f"--processes {self.count} needs {self.each} GPUs on this machine, which has {cards}.")
        if problems:
            raise ConfigError(problems)

    def own(self, training: TrainingConfig, rows: PlannedRows | None) -> TrainingConfig:
        """The settings of a process alone that would have as many rows in a step."""
        if not self.is_several:
            return training
        return training.model_copy(update={"batch_size": -(-rows_in_step(training, rows) // self.count)})

    def largest_share(self, training: TrainingConfig, rows: PlannedRows | None) -> float:
        """Of the tokens of a step, in the mean of steps that are dealt as training deals them."""
        count = rows_in_step(training, rows)
        lengths = rows.lengths if rows is not None and rows.lengths else (1,)
        drawn, shares = Random(0), []
        for _ in range(DEALT if len(set(lengths)) > 1 else 1):
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
        """Of one process, where all cores together have `speed`; a card is one process's alone."""
        if not self.is_several or device.kind != "processor":
            return speed
        part = self.part_of_cores
        if isinstance(speed, Probe):
            return replace(speed, per_token=speed.per_token / part, unpacking=speed.unpacking / part)
        unpacking = None if speed.unpacking is None else speed.unpacking.times(part)
        return replace(speed, rate=speed.rate * part, unpacking=unpacking)

    @property
    def part_of_cores(self) -> float:
        """Of a machine's, that one process has."""
        cores = usable_cores()
        return min(max(1, cores // self.each) / cores, 1 / self.each)

    def memory_of(self, device: Device) -> int:
        """Bytes for each process; each has a card of its own."""
        return device.memory // self.each if device.kind == "processor" else device.memory


ALONE = Processes()


def rows_in_step(training: TrainingConfig, rows: PlannedRows | None) -> int:
    """Of all processes together."""
    return training.batch_size if rows is None else training.rows_per_step(max(1, round(rows.documents.likely)))
