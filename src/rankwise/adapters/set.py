"""The adapters of one model: the only handle that others hold.

Adapters are found by type, never by a substring of a name. The base is frozen while the set exists; `eject` puts
back every layer, the same object it was, and what required gradients before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import regex
import torch
from torch import nn

from rankwise.adapters.adalora import is_decided
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import adalora_for, features_of, lora_for
from rankwise.adapters.fused import split_of
from rankwise.adapters.lora import LoRA
from rankwise.adapters.targets import Choice, choose, chosen_paths
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.config.adapters import AdaLoraConfig, LoraConfig, check_strength
from rankwise.config.budget import budget_of
from rankwise.errors import TargetError, TrainingError, some

_NAME = regex.compile(r"[A-Za-z0-9_-]{1,64}")


class AdapterSet:
    """Made by `inject`. Adapters have names; the active ones are added up, and new ones become active alone."""

    kind = "adapted layers"

    def __init__(self, model: nn.Module) -> None:
        refuse_adapted(model)
        self.model = model
        self._required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)

    def add(
        self,
        spec: LoraConfig | AdaLoraConfig,
        name: str = "default",
        seed: int = 0,
        choices: list[Choice] | None = None,
    ) -> None:
        """Lay a new adapter over the layers that `spec` names, and make it the active one. With start "eva" the
        `choices` are those of `eva_choices`."""
        if (choices is not None) != (isinstance(spec, LoraConfig) and spec.start == "eva"):
            raise TargetError('LoRA with start "eva" needs the choices that eva_choices makes, and nothing else does.')
        if isinstance(spec, LoraConfig):
            chosen = choose(self.model, spec) if choices is None else choices
            self.place(chosen, name, spec.dropout, seed, dora=spec.dora)
        else:
            self._place_triplets(spec, name, seed)

    @torch.no_grad()
    def place(
        self, choices: list[Choice], name: str, dropout: float = 0.0, seed: int = 0, *, dora: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def made(choice: Choice) -> Adapter:
            host = self.host(choice.path)
            lora = lora_for(host, choice.rank, choice.scale, dropout, generator, dora=dora)
            if choice.A is not None:
                lora.A.copy_(choice.A)
            return lora

        self._lay({choice.path: (lambda choice=choice: made(choice)) for choice in choices}, name)

    def _place_triplets(self, spec: AdaLoraConfig, name: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        paths = chosen_paths(self.model, spec)
        sizes = {path: features_of(self.host(path)) for path in paths}
        splits = {path: split_of(self.model, path, sizes[path][1]) for path in paths}
        counts = [len(split.names) if split else 1 for split in splits.values()]
        layers = [layer for layer, count in enumerate(counts) for _ in range(count)]
        mean_rank = budget_of(spec, [sum(sizes[paths[layer]]) for layer in layers], layers, paths).mean_rank

        def made(path: str) -> Adapter:
            return adalora_for(self.host(path), spec, mean_rank, splits[path], generator)

        self._lay({path: (lambda path=path: made(path)) for path in paths}, name)

    def _lay(self, makers: dict[str, Callable[[], Adapter]], name: str) -> None:
        if not _NAME.fullmatch(name):
            raise TargetError(f"an adapter's name is 1 to 64 letters, digits, _ or -; this one is {name!r}.")
        if name in self.names:
            raise TargetError(f'this model has an adapter "{name}" already; its adapters are {some(self.names)}.')
        for path, make in makers.items():
            adapter = make()
            adapted = self._adapted_at(path)
            adapted.adapters[name] = adapter.train(adapted.training)
        self.activate(name)

    def host(self, path: str) -> nn.Module:
        module = self.model.get_submodule(path)
        return module.host if isinstance(module, AdapterWrapper) else module

    def discard_empty(self, name: str = "default") -> None:
        """Forget the parts of rank 0: they change nothing and cost time."""
        for layer in self.layers.values():
            if name in layer.adapters and layer.adapter(name).rank == 0:
                del layer.adapters[name]
                layer.active = tuple(other for other in layer.active if other != name)

    def settle(self, name: str = "default") -> None:
        """Every part of an adapter as plain LoRA of its rank and scale, whatever it was trained as; DoRA stays DoRA."""
        self.check_decided(name)
        for path, adapter in self.adapters(name).items():
            if not isinstance(adapter, LoRA):
                self.layers[path].adapters[name] = plain_lora(self.host(path), adapter)
        self.discard_empty(name)

    def check_decided(self, name: str = "default") -> None:
        """AdaLoRA that nobody allocated is LoRA of all the ranks it began with, which nobody asked for."""
        undecided = [path for path, adapter in self.adapters(name).items() if not is_decided(adapter)]
        if undecided:
            raise TrainingError(
                f'the ranks of {len(undecided)} layers are not decided yet, as of "{undecided[0]}": '
                "RankAllocator.stepped was not called up to its last steps."
            )

    @property
    def layers(self) -> dict[str, AdapterWrapper]:
        """Adapted layers by the path their host has in the model."""
        return {path: module for path, module in self.model.named_modules() if isinstance(module, AdapterWrapper)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.adapters))

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.active))

    def adapters(self, name: str = "default") -> dict[str, Adapter]:
        """The parts of one adapter, by the path of their host."""
        self._check(name)
        return {path: layer.adapter(name) for path, layer in self.layers.items() if name in layer.adapters}

    def parameters(self, name: str = "default") -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters(name).values() for parameter in adapter.parameters()]

    def named_parameters(self, name: str = "default") -> dict[str, nn.Parameter]:
        return {
            f"{path}.{own}": parameter
            for path, adapter in self.adapters(name).items()
            for own, parameter in adapter.named_parameters()
        }

    @property
    def parts(self) -> list[str]:
        return list(self.adapters())

    @property
    def added(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, learning: bool = True) -> None:
        """Turn the adapters' dropout on or off. The base's own stays off: it is not being trained."""
        for layer in self.layers.values():
            layer.adapters.train(learning)

    def activate(self, *names: str) -> None:
        for name in names:
            self._check(name)
        self._refuse_beside_another(names)
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

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Inside, the active adapters change the base `strength` times as much: by 0 nothing, by 1 what they do anyway.
        Nested strengths multiply. What is merged or written inside has the strength in it."""
        check_strength(strength)
        with ExitStack() as stack:
            for layer in self.layers.values():
                for name in layer.active:
                    stack.enter_context(layer.adapter(name).scaled(strength))
            yield

    def eject(self) -> nn.Module:
        """Take every adapter out again; returns the base model."""
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            if isinstance(module, AdapterWrapper):
                self.model.set_submodule(path, module.host)
        for parameter in self._required_grad:
            parameter.requires_grad_(True)
        return self.model

    def _adapted_at(self, path: str) -> AdapterWrapper:
        module = self.model.get_submodule(path)
        if isinstance(module, AdapterWrapper):
            return module
        adapted = AdapterWrapper(module)
        for place, other in list(self.model.named_modules(remove_duplicate=False)):
            if other is module:  # a layer that a model uses in two places is adapted in both
                self.model.set_submodule(place, adapted)
        return adapted

    def _refuse_beside_another(self, names: tuple[str, ...]) -> None:
        for path, layer in self.layers.items():
            here = [name for name in names if name in layer.adapters]
            alone = next((name for name in here if not layer.adapter(name).additive), None)
            if alone is not None and len(here) > 1:
                raise TargetError(
                    f'adapter "{alone}" is DoRA, which stretches the whole weight and cannot be added to another; '
                    f'"{path}" would have {some(here)}. Activate it alone.'
                )

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise TargetError(f'this model has no adapter "{name}"; its adapters are {some(self.names) or "none"}.')


def refuse_adapted(model: nn.Module) -> None:
    if any(isinstance(module, AdapterWrapper) for module in model.modules()):
        raise TargetError(
            "this model has adapters already. Their set (what inject returned, or a finished training's `tuned`) can "
            "`add` another or `eject` them all."
        )


@torch.no_grad()
def plain_lora(host: nn.Module, adapter: Adapter) -> LoRA:
    """The same change with two factors."""
    A, B = adapter.factors()
    assert adapter.additive, "two factors would not be the same change"
    lora = lora_for(host, A.shape[0], adapter.scale, adapter.dropout, torch.Generator())
    lora.A.copy_(A)
    lora.B.copy_(B)
    return lora.train(adapter.training)


def inject(
    model: nn.Module, spec: LoraConfig | AdaLoraConfig | None = None, *, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None,
) -> AdapterSet:  # fmt: skip
    """Freeze `model` and lay an adapter over the layers that `spec` names. Untrained, it changes nothing."""
    adapters = AdapterSet(model)
    try:
        adapters.add(spec or LoraConfig(), name, seed, choices)
    except BaseException:
        adapters.eject()
        raise
    return adapters
