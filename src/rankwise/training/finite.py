"""Whether all that learned still is numbers, looked at before it is measured, saved or written.

A loss tells of the parameters that a step used, before it changed them. What the last step made of them, and the row of
a token that no text has, no loss tells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rankwise.errors import TrainingError, some
from rankwise.models.sharding import local_part
from rankwise.training.state import TrainState


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
    """The end of a sentence about a loss or a norm that is none: the first tensor that is no number, if one is."""
    parameters = state.trainable.named_parameters()
    names = _names(parameters, state)
    gradients = {name: one.grad for name, one in zip(names, state.parameters, strict=True) if one.grad is not None}
    for what, tensors in (("weight", parameters), ("gradient of", gradients)):
        if spoiled := not_finite(tensors):
            return f" (the first that is none is the {what} {spoiled[0]})"
    return ""


def _names(parameters: Mapping[str, Tensor], state: TrainState) -> list[str]:
    """Of what the optimizer updates."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names.get(id(parameter), f"flat tensor {number}") for number, parameter in enumerate(state.parameters)]


def _is_finite(value: Tensor) -> bool:
    """The smallest and the largest are NaN where anything is, and are found without a tensor of as many truths."""
    return value.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(value))
