"""Full fine-tuning: every weight of the model learns, and no adapter lies over it.

The base's weights are not in memory while it trains. Whoever asks for the base again has them read from where they
came, once, and kept on the processor; on a processor taking turns then costs nothing, since nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.allocation import Undecided
from rankwise.adapters.held import Held, order_of
from rankwise.adapters.set import refuse_adapted
from rankwise.config.adapters import check_strength
from rankwise.errors import ModelError, some

ReadBase = Callable[[], Mapping[str, Tensor]]
"""The base's weights by their names in the model; they must be nobody else's."""


class WholeModel:
    """A weight that two layers share is one weight, before and after."""

    kind = "weights"
    added = 0

    def __init__(self, model: nn.Module, read_base: ReadBase) -> None:
        refuse_adapted(model)
        model.requires_grad_(True)
        self.model = model
        self._read_base = read_base
        self._base: Mapping[str, Tensor] | None = None

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @property
    def parts(self) -> list[str]:
        return list(self.weights)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self.weights

    def parameters(self) -> list[nn.Parameter]:
        return list(self.weights.values())

    def train(self, learning: bool = True) -> None:
        """Nothing is done while learning alone: a step must not depend on how it is portioned."""

    def settle(self) -> None:
        """The weights are what they are."""

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self._holding(lambda base, ours: base):
            yield

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Inside, every weight is `strength` of the way from the base's to what it learned. Nested ones multiply."""
        check_strength(strength)
        if strength == 1:
            yield
            return
        with self._holding(lambda base, ours: _between(base, ours, strength)):
            yield

    def turn(self, strength: float) -> None:
        """The same for good."""
        check_strength(strength)
        if strength == 1:
            return
        base = self._base_weights()
        for name, weight in self.weights.items():
            _put(weight, _between(base[name], weight.data.cpu(), strength))

    @contextmanager
    def _holding(self, value: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Of each weight the base's and ours, both on the processor, to what it is inside."""
        base, weights = self._base_weights(), self.weights
        ours: dict[str, Tensor] = {}
        try:
            for name, weight in weights.items():
                ours[name] = weight.data.cpu()
                _put(weight, value(base[name], ours[name]))
            yield
        finally:
            for name, kept in ours.items():
                _put(weights[name], kept)

    def _base_weights(self) -> Mapping[str, Tensor]:
        if self._base is None:
            read, weights = self._read_base(), self.weights
            wrong = sorted(read.keys() ^ weights.keys())
            wrong += [name for name in weights if name in read and read[name].shape != weights[name].shape]
            if wrong:
                raise ModelError(f"the base model is built otherwise than the tuned one: {some(wrong, 3)}.")
            self._base = read
        return self._base


def _between(base: Tensor, ours: Tensor, strength: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.lerp(base.to(ours.dtype), ours, strength)


def _put(weight: nn.Parameter, value: Tensor) -> None:
    with torch.inference_mode(False):  # else what is moved to a device could never learn again
        weight.data = value.to(weight.device, weight.dtype)


class AllWeights(Undecided):
    """What learns, for the optimizer and the checkpoints.

    Weight decay is for matrices; biases and the gains of norms do without, as is usual since GPT-2.
    """

    def __init__(self, whole: WholeModel) -> None:
        self._weights = whole.weights

    @property
    def groups(self) -> list[dict[str, Any]]:
        matrices = [weight for weight in self._weights.values() if weight.dim() > 1]
        others = [weight for weight in self._weights.values() if weight.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "rate": 1.0},
            {"params": others, "rate": 1.0, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def idle(self, optimizer: torch.optim.Optimizer) -> list[str]:
        return [name for name, weight in self._weights.items() if weight not in optimizer.state]

    def state(self) -> Held:
        return Held(self._values, {"order": self._order})

    def load(self, held: Held, optimizer: torch.optim.Optimizer) -> None:
        held.check_order(self._order)
        held.fill(self._values)

    @property
    def _values(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._weights.items()}

    @property
    def _order(self) -> str:
        return order_of((name, tuple(weight.shape)) for name, weight in self._weights.items())
