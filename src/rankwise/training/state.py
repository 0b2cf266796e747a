"""Everything of a training run that changes from step to step, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from rankwise.spec.training import TrainingSpec


@dataclass
class TrainState:
    """`rate` gives the learning rate of a step; `step` counts the optimizer steps that are done."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    steps: int
    clip: float
    device: torch.device
    step: int = 0

    @property
    def finished(self) -> bool:
        return self.step >= self.steps


def adamw(parameters: list[nn.Parameter], spec: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW in one fused call; its rate is set before each step."""
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=spec.weight_decay, fused=True)
