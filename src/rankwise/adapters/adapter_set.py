"""The adapters of one model: the only handle that others hold.

Adapters are found by type, never by a substring of a name. The base is frozen while the set exists; `eject` puts
back every layer, the same object it was, and what required gradients before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import regex
import torch
from torch import nn

from rankwise.adapters.adapted import Adapted
from rankwise.adapters.hosts import adapter_for
from rankwise.adapters.lora import LoRA
from rankwise.adapters.targets import Choice, choose
from rankwise.errors import TargetError, some
from rankwise.spec.adapters import LoraSpec

_NAME = regex.compile(r"[A-Za-z0-9_-]{1,64}")


class AdapterSet:
    """Made by `inject`. Adapters have names; the active ones are added up, and new ones become active alone."""

    def __init__(self, model: nn.Module) -> None:
        if any(isinstance(module, Adapted) for module in model.modules()):
            raise TargetError(
                "this model has adapters already. Their set (what inject returned, or a finished training's "
                "`adapters`) can `add` another or `eject` them all."
            )
        self.model = model
        self._required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)

    def add(self, spec: LoraSpec, name: str = "default", seed: int = 0) -> None:
        """Lay a new adapter over the layers that `spec` names, and make it the active one."""
        self.place(choose(self.model, spec), name, spec.dropout, seed)

    def place(self, choices: list[Choice], name: str, dropout: float = 0.0, seed: int = 0) -> None:
        if not _NAME.fullmatch(name):
            raise TargetError(f"an adapter's name is 1 to 64 letters, digits, _ or -; this one is {name!r}.")
        if name in self.names:
            raise TargetError(f'this model has an adapter "{name}" already; its adapters are {some(self.names)}.')
        generator = torch.Generator().manual_seed(seed)
        for choice in choices:
            adapted = self._adapted_at(choice.path)
            adapted.adapters[name] = adapter_for(adapted.host, choice.rank, choice.alpha, dropout, generator)
            adapted.adapters[name].train(adapted.training)
        self.activate(name)

    @property
    def layers(self) -> dict[str, Adapted]:
        """Adapted layers by the path their host has in the model."""
        return {path: module for path, module in self.model.named_modules() if isinstance(module, Adapted)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.adapters))

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.active))

    def adapters(self, name: str = "default") -> dict[str, LoRA]:
        """The parts of one adapter, by the path of their host."""
        self._check(name)
        return {path: layer.adapter(name) for path, layer in self.layers.items() if name in layer.adapters}

    def parameters(self, name: str = "default") -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters(name).values() for parameter in (adapter.A, adapter.B)]

    def train(self, learning: bool = True) -> None:
        """Turn the adapters' dropout on or off. The base's own stays off: it is not being trained."""
        for layer in self.layers.values():
            layer.adapters.train(learning)

    def activate(self, *names: str) -> None:
        for name in names:
            self._check(name)
        for layer in self.layers.values():
            layer.active = tuple(name for name in names if name in layer.adapters)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model inside; afterwards whatever was active before, nested or not."""
        before = [(layer, layer.active) for layer in self.layers.values()]
        for layer, _ in before:
            layer.active = ()
        try:
            yield
        finally:
            for layer, active in before:
                layer.active = active

    def eject(self) -> nn.Module:
        """Take every adapter out again; returns the base model."""
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            if isinstance(module, Adapted):
                self.model.set_submodule(path, module.host)
        for parameter in self._required_grad:
            parameter.requires_grad_(True)
        return self.model

    def _adapted_at(self, path: str) -> Adapted:
        module = self.model.get_submodule(path)
        if isinstance(module, Adapted):
            return module
        adapted = Adapted(module)
        for place, other in list(self.model.named_modules(remove_duplicate=False)):
            if other is module:  # a layer that a model uses in two places is adapted in both
                self.model.set_submodule(place, adapted)
        return adapted

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise TargetError(f'this model has no adapter "{name}"; its adapters are {some(self.names) or "none"}.')


def inject(model: nn.Module, spec: LoraSpec | None = None, *, name: str = "default", seed: int = 0) -> AdapterSet:
    """Freeze `model` and lay an adapter over the layers that `spec` names. Untrained, it changes nothing."""
    adapters = AdapterSet(model)
    try:
        adapters.add(spec or LoraSpec(), name, seed)
    except BaseException:
        adapters.eject()
        raise
    return adapters
