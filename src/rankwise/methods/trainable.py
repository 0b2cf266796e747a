"""What learns, as one object from the first step to the last, whatever the method.

A training loop calls, once a step and in this order,

    set_apart()                 after the backward pass of an anchor, before that of the rows; only with an anchor
    add_penalty()               after the backward pass, before clipping
    before_step(clipped)        after clipping, by this factor
    optimizer.step()
    after_step(step, ...)       while the gradients are still there; they are then zeroed, not dropped

and `finish()` after the last step. A loop of your own may do the same (docs/adalora.md).

What must survive a pause between two steps is tensors by name, and facts that JSON can hold. A flat buffer means
nothing without the order of what lies in it, so the facts hold a hash of names and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rankwise.base.split import local_part, part_of
from rankwise.errors import RunError, some
from rankwise.runs.records import RankRecord


@dataclass(frozen=True)
class TrainableState:
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def check_layout(self, layout: str) -> None:
        """RunError where the tensors belong to other layers, another order of them or other ranks."""
        if self.facts.get("order") != layout:
            raise RunError(
                "the checkpoint belongs to other adapters: its layers, their order or their ranks differ from those of "
                "this model and these settings."
            )

    @torch.no_grad()
    def copy_into(self, live: Mapping[str, Tensor]) -> None:
        """Overwrite the live tensors; none may be missing, left over, or of another shape or type."""
        wrong = sorted(self.tensors.keys() ^ live.keys())
        wrong += [name for name in live if name not in wrong and not _same_kind(live[name], self.tensors[name])]
        if wrong:
            raise RunError(f"the checkpoint does not fit these adapters: {some(wrong, 4)}.")
        for name, target in live.items():
            local_part(target).copy_(part_of(self.tensors[name], target))

    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Into the live parameters of a state that `state_of` made."""
        self.check_layout(_layout_of_tensors(parameters))
        self.copy_into({name: parameter.detach() for name, parameter in parameters.items()})


def state_of(parameters: Mapping[str, Tensor]) -> TrainableState:
    """Parameters whose shapes stay, and nothing else. The tensors are the live ones."""
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    return TrainableState(tensors, {"order": _layout_of_tensors(tensors)})


def _layout_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    return layout_of((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def _same_kind(first: Tensor, other: Tensor) -> bool:
    return first.shape == other.shape and first.dtype == other.dtype


def layout_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """A hash of names and shapes in their order."""
    return sha256(json.dumps([[name, *shape] for name, shape in shapes]).encode()).hexdigest()


class WithBase(Protocol):
    """A tuned model that can be its own base for a while."""

    @property
    def model(self) -> nn.Module: ...

    def base(self) -> AbstractContextManager[None]:
        """Inside, the model is the base, bit for bit; afterwards what it was before, nested or not."""
        ...


class Trainable(Protocol):
    """Unless a method says otherwise, a step is a step, its ranks stay, and its state is its parameters."""

    unit: str
    """What `names` counts, in the plural, for messages: adapted layers, or weights."""
    model: nn.Module
    initial_ranks: RankRecord | None = None
    """The ranks, where data decided them before the first step."""

    @property
    def names(self) -> list[str]:
        """The paths of the layers or weights that learn."""
        return list(self.named_parameters())

    @property
    def extra_parameters(self) -> int:
        """How many parameters the base does not have."""
        return 0

    @property
    def first_final_step(self) -> int:
        """The first step after which the model is as small as at the end; validation chooses from there on."""
        return 1

    def describe(self) -> str | None:
        """A sentence for the beginning of a run, where ranks will change."""
        return None

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names in the model."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimizer; `rate` is the multiple of the learning rate that a group learns with."""
        ...

    def train(self, mode: bool = True) -> None:
        """Turn the adapters' dropout on or off. The model's own dropout stays off: a step must not depend on how it is
        divided."""

    @property
    def sets_apart(self) -> bool:
        """Whether the gradient of an anchor must be alone in the gradients at first."""
        return False

    def set_apart(self) -> list[Tensor]:
        """What the gradients hold now comes from an anchor and not from the rows. Of several processes the first alone
        has an anchor, so they add up the tensors that are returned."""
        return []

    def add_penalty(self) -> None:
        """Add the gradient of what the method asks of its own parameters, whatever the rows say."""

    def before_step(self, clipped: float = 1.0) -> None:
        """`clipped` is the factor that all gradients were multiplied by."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        """`step` counts from 0. Returns the ranks where they were decided anew and are worth reporting."""
        return None

    def without_gradient(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """The entries of `names` whose parameters have never received a gradient."""
        ...

    def state_dict(self) -> TrainableState:
        """All that must survive a pause between two steps. The tensors are the live ones."""
        return state_of(self.named_parameters())

    def load_state_dict(self, state: TrainableState, optimizer: torch.optim.Optimizer) -> None:
        """Over a freshly attached method, before the optimizer's own state is loaded."""
        state.restore(self.named_parameters())

    def end_early(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        """`step` becomes the last one, though it was not to be: ranks that are open stay as they are."""
        return None

    def finish(self) -> None:
        """After the last step: what is left is only what will be written."""

    def check_change(self, rate: float) -> str | None:
        """TrainingError where nothing was learned at this learning rate; a warning where it may be lost by rounding."""
        return None

    def base(self) -> AbstractContextManager[None]:
        """Inside, the model is the base, bit for bit; afterwards what it was before, nested or not."""
        ...

    def scaled(self, factor: float) -> AbstractContextManager[None]:
        """Inside, the change from the base is multiplied by `factor`: 0 is the base, 1 the tuned model."""
        ...

    def weaken(self, factor: float) -> None:
        """After `finish`: multiply the change from the base by `factor` for good."""
        ...

    def merge(self, factor: float, outputs: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
        """Leave a plain model whose weights contain the change times `factor`, and nothing over it. Returns `outputs`
        of the tuned model, and of its base where that is at hand."""
        ...

    def remove(self) -> None:
        """Give the model back as it was, where the method leaves the base's weights alone."""
