"""Full fine-tuning: every weight of the model learns, and no adapter lies over it.

The base's weights are not in memory while it trains. When the base is needed again, they are read from where they came,
once, and stay in the processor's memory; on a processor taking turns then costs nothing, since nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.set import refuse_adapted
from rankwise.base.loaded import LoadedModel, base_weights, check_base
from rankwise.base.saving import save
from rankwise.config.adapters import FullConfig, check_strength
from rankwise.errors import ModelError, some
from rankwise.methods.adapter import decayed_groups
from rankwise.methods.method import Method, ResultFolder, Setup
from rankwise.methods.trainable import Trainable
from rankwise.runs.records import Callback
from rankwise.system.files import published

ReadBase = Callable[[], Mapping[str, Tensor]]
"""The base's weights by their names in the model; they must be nobody else's."""


class FullFineTuning(Trainable):
    """A weight that two layers share is one weight, before and after."""

    unit = "weights"

    def __init__(self, model: nn.Module, read_base: ReadBase) -> None:
        refuse_adapted(model)
        model.requires_grad_(True)
        self.model = model
        self._read_base = read_base
        self._base: Mapping[str, Tensor] | None = None

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def parameter_groups(self) -> list[dict[str, Any]]:
        return decayed_groups(self.parameters())

    def without_gradient(self, optimizer: torch.optim.Optimizer) -> list[str]:
        return [name for name, weight in self.named_parameters().items() if weight not in optimizer.state]

    @contextmanager
    def base(self) -> Iterator[None]:
        with self._with_weights(lambda base, ours: base):
            yield

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Inside, every weight is `factor` of the way from the base's to what it learned. Nested factors multiply."""
        check_strength(factor)
        if factor == 1:
            yield
            return
        with self._with_weights(lambda base, ours: _between(base, ours, factor)):
            yield

    def weaken(self, factor: float) -> None:
        raise AssertionError("a budget of forgetting is refused for full fine-tuning")

    def merge(self, factor: float, outputs: Callable[[], Tensor]) -> tuple[Tensor, None]:
        """Move every weight for good to `factor` of the way from the base's to what it learned. Returns `outputs` of
        the result, and None instead of those of the base."""
        check_strength(factor)
        if factor != 1:
            base = self._base_weights()
            for name, weight in self.named_parameters().items():
                _put(weight, _between(base[name], weight.data.cpu(), factor))
        return outputs(), None

    @contextmanager
    def _with_weights(self, value: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Inside, each weight is `value` of the base's weight and of ours, both given on the processor."""
        base, weights = self._base_weights(), self.named_parameters()
        ours: dict[str, Tensor] = {}
        try:
            for name, weight in weights.items():
                ours[name] = weight.data.cpu()
                _put(weight, value(base[name], ours[name]))
            yield
        finally:
            for name, own in ours.items():
                _put(weights[name], own)

    def _base_weights(self) -> Mapping[str, Tensor]:
        if self._base is None:
            read, weights = self._read_base(), self.named_parameters()
            wrong = sorted(read.keys() ^ weights.keys())
            wrong += [name for name in weights if name in read and read[name].shape != weights[name].shape]
            if wrong:
                raise ModelError(
                    f"the base model and the tuned model have different weights or shapes: {some(wrong, 3)}."
                )
            self._base = read
        return self._base


def _between(base: Tensor, ours: Tensor, strength: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.lerp(base.to(ours.dtype), ours, strength)


def _put(weight: nn.Parameter, value: Tensor) -> None:
    with torch.inference_mode(False):  # else what is moved to a device could never learn again
        weight.data = value.to(weight.device, weight.dtype)


class FullMethod(Method):
    def __init__(self, config: FullConfig) -> None:
        self.config = config

    def own_copy(self, model: LoadedModel) -> LoadedModel:
        return replace(model, module=deepcopy(model.module))

    def attach(self, model: LoadedModel, setup: Setup) -> FullFineTuning:
        check = partial(check_base, trained_on=model.facts, described=setup.described, use="use it")

        def read_base() -> Mapping[str, Tensor]:
            assert setup.load is not None, "a training that needs its base again says how it is loaded"
            return base_weights(setup.load, model.config, check, setup.callback)

        return FullFineTuning(model.module, read_base)

    @contextmanager
    def saving(
        self, trainable: FullFineTuning, model: LoadedModel, folder: Path, revision: str | None, callback: Callback
    ) -> Iterator[ResultFolder]:
        with published(folder) as temporary:
            save(model, temporary, torch.float32)
            yield ResultFolder(temporary, None)
