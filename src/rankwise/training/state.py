"""Everything of a training run that changes from step to step, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from rankwise.config.training import TrainingConfig
from rankwise.methods.trainable import Trainable
from rankwise.models.sharding import is_split


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
