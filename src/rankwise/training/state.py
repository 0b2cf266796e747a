"""Everything of a training run that changes from step to step, and nothing else.

Dropout draws from torch's own generators, whose state is taken, set, and kept over what must not disturb it.

Whether all that learned still is numbers is looked at before it is measured, saved or written. A loss tells of the
parameters that a step used, before it changed them. What the last step made of them, and the row of a token that no
text has, no loss tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.split import is_split, local_part
from rankwise.config.training import TrainingConfig
from rankwise.errors import RunError, TrainingError, some
from rankwise.methods.trainable import Trainable


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


def adamw(trainable: Trainable, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW in one fused call; its rate is set before each step."""
    return torch.optim.AdamW(trainable.parameter_groups(), lr=0.0, weight_decay=config.weight_decay, fused=True)


class Diverged(TrainingError):
    """`begun` is the first step whose loss, norm or result is no longer sensible."""

    def __init__(self, message: str, begun: int) -> None:
        super().__init__(message)
        self.begun = begun


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those with a NaN or an infinity."""
    return [
        name for name, value in tensors.items()
        if value.is_floating_point() and not _is_finite(local_part(value.detach()))
    ]  # fmt: skip


def check_finite(tensors: Mapping[str, Tensor], state: TrainState) -> None:
    """TrainingError that names the tensors and the step."""
    if spoiled := not_finite(tensors):
        raise Diverged(
            f"after step {state.step} of {state.steps}, these tensors contain NaN or infinity: {some(spoiled, 3)}. "
            "They were not saved. Try a lower learning rate or --set model.dtype=float32, with --restart.",
            begun=state.step,
        )


def averages_of(parameters: Mapping[str, Tensor], state: TrainState) -> dict[str, Tensor]:
    """The optimizer's averages of each parameter, by what they are and whose. AdaLoRA's are those of flat tensors."""
    return {
        f"{key} of {name}": value
        for name, parameter in zip(_names(parameters, state), state.parameters, strict=True)
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }


def first_not_finite(state: TrainState) -> str:
    """The end of a sentence about a loss or a norm that is not finite: the first tensor that is not finite, if any."""
    parameters = state.trainable.named_parameters()
    names = _names(parameters, state)
    gradients = {name: one.grad for name, one in zip(names, state.parameters, strict=True) if one.grad is not None}
    for what, tensors in (("weight", parameters), ("gradient of", gradients)):
        if spoiled := not_finite(tensors):
            return f" (the first that is not finite is the {what} {spoiled[0]})"
    return ""


def _names(parameters: Mapping[str, Tensor], state: TrainState) -> list[str]:
    """Name the tensors that the optimizer updates, in its order. Flat tensors, which have no name, are numbered."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names.get(id(parameter), f"flat tensor {number}") for number, parameter in enumerate(state.parameters)]


def _is_finite(value: Tensor) -> bool:
    """The smallest and the largest are NaN where anything is, and are found without a tensor of as many truths."""
    return value.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(value))
