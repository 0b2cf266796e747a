"""Everything of a training run that changes from step to step, and nothing else.

Dropout draws from torch's own generators, whose state is taken, set, and kept over what must not disturb it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError
from rankwise.methods.trainable import Trainable
from rankwise.models.sharding import is_split


def random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    if states.keys() != {"cpu", device.type}:
        raise RunError(f"the checkpoint was written on another device ({', '.join(states)}, not {device.type}).")
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def seed_process(seed: int, step: int, rank: int) -> None:
    """Let each of several processes draw numbers of its own in a step: a function of these three alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Afterwards the random generators are as if nothing had been drawn inside."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(device, states)


@dataclass
class TrainState:
    """`rate` gives the learning rate of a step; `step` counts the optimizer steps that are done."""

    trainable: Trainable
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    steps: int
    clip: float
    device: torch.device
    step: int = 0
    ended: bool = False
    """No further step is made, though there could be."""

    @property
    def finished(self) -> bool:
        return self.ended or self.step >= self.steps

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def is_split(self) -> bool:
        """Whether what learns is split over several processes."""
        return any(map(is_split, self.parameters))

    def set_rate(self, rate: float) -> None:
        """Each group learns at its own multiple of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]


def adamw(trainable: Trainable, spec: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW in one fused call; its rate is set before each step."""
    return torch.optim.AdamW(trainable.parameter_groups(), lr=0.0, weight_decay=spec.weight_decay, fused=True)
