"""The adapters of one model, and the heads that are trained whole beside them.

Adapters are looked up by type, never by a substring of a name. The base is frozen while the set exists; `remove` puts
back every layer, the same object it was, and what required gradients before. Merged, the change is added to
the base's weights, for engines that read no adapters:

    W' = W + s B A,   for DoRA m (W + s B A) / n

computed in float32 and rounded once to the number format of W. A quantised W is unpacked for it and gives way to an
ordinary weight; its parts stay as they are, and so do weights without an adapter. A head that was trained whole takes
the place of the base's, and so do the rows of new tokens. A weight that two layers share, such as a table that is the
output head too, is parted first where only one of the two was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import regex
import torch
from torch import Tensor, nn

from rankwise.adapters.adalora import is_decided
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import lora_for, oriented, plain_lora, weight_of
from rankwise.adapters.experts import open_experts, owner_of
from rankwise.adapters.heads import HeadWrapper, head_paths
from rankwise.adapters.lora import LoRA
from rankwise.adapters.targets import Choice
from rankwise.adapters.token_rows import TokenRows, lay_token_rows
from rankwise.adapters.wrapper import AdapterWrapper, Wrapper
from rankwise.config.adapters import check_strength
from rankwise.errors import TargetError, TrainingError, some
from rankwise.kernels.quantized.tensor import in_full, is_quantized, unpack_weights

SEPARATELY = (
    ", and of two adapters one cannot have factors where the other trains the whole (modules_to_save). Use them apart."
)
_NAME = regex.compile(r"[A-Za-z0-9_-]{1,64}")


class AdapterSet:
    """The adapters of one model, as `inject` returns them. Each has a name. The updates of the active adapters are
    added up; a new adapter becomes the only active one."""

    def __init__(self, model: nn.Module) -> None:
        refuse_adapted(model)
        self.model = model
        self.notes: list[str] = []
        """Sentences about targets that `inject` and `add_adapter` understood, and about layers that they left out."""
        self._required_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)

    @torch.no_grad()
    def attach(
        self, choices: list[Choice], name: str, dropout: float = 0.0, seed: int = 0, *, dora: bool = False
    ) -> None:
        """Add a LoRA or DoRA adapter to the chosen layers and make it the active one."""
        generator = torch.Generator().manual_seed(seed)
        open_experts(self.model, [choice.path for choice in choices])

        def parts() -> Iterator[tuple[str, Adapter]]:
            for choice in choices:
                host = self.base_layer(choice.path)
                lora = lora_for(host, choice.rank, choice.scale, dropout, generator, dora=dora)
                if choice.A is not None:
                    lora.A.copy_(choice.A)
                yield choice.path, lora

        self.add(parts(), name)

    def add_heads(self, heads: Sequence[str], name: str = "default") -> None:
        """Train the modules with these names in full; layers inside them get no adapter."""
        _check_name(name)
        for path in head_paths(self.model, heads) if heads else []:
            module = self.model.get_submodule(path)
            if isinstance(module, AdapterWrapper):
                raise TargetError(f'"{path}" has factors of an adapter of this model{SEPARATELY}')
            wrapper = module if isinstance(module, HeadWrapper) else HeadWrapper(module)
            wrapper.add(name)
            wrapper.active = name
            self.model.set_submodule(path, wrapper)

    def add_token_rows(self, ids: Mapping[str, Sequence[int]], name: str = "default") -> None:
        """Train the rows of these tokens in the embedding and the output head at these paths (token_rows.py)."""
        _check_name(name)
        lay_token_rows(self.model, ids, name)

    def add(self, parts: Iterable[tuple[str, Adapter]], name: str = "default") -> None:
        """Lay parts over the layers at their paths, and make them the active adapter. Each is made when its turn comes,
        so that none is where the name is refused."""
        _check_name(name)
        if name in dict.fromkeys(name for layer in self.layers.values() for name in layer.adapters):
            raise TargetError(f'this model already has an adapter "{name}"; its adapters are {some(self.names)}.')
        places: dict[nn.Module, list[str]] = {}
        for place, module in self.model.named_modules(remove_duplicate=False):
            places.setdefault(module, []).append(place)
        uncalled: list[str] = []
        for path, adapter in parts:
            adapted = self._adapted_at(path, places)
            uncalled += [path] if adapted.uncalled_in else []
            adapted.adapters[name] = adapter.train(adapted.training)
        self.activate(name)
        if uncalled:
            self.notes.append(
                f"PEFT leaves {len(uncalled)} of these layers as they were ({some(uncalled, 1)}), because the model's "
                "code reads their weight without calling them; for other programs, merge the adapter"
            )

    def base_layer(self, path: str) -> nn.Module:
        """The base model's module at a path. TargetError if it is trained in full, so that it can't have an adapter."""
        module = self.model.get_submodule(path)
        if isinstance(module, HeadWrapper) and not isinstance(module, TokenRows):
            raise TargetError(f'"{path}" is trained whole by an adapter of this model{SEPARATELY}')
        return module.base_layer if isinstance(module, AdapterWrapper) else module

    def discard_empty(self, name: str = "default") -> None:
        """Drop parts of rank 0: they change nothing and cost time."""
        for layer in self.layers.values():
            if name in layer.adapters and layer.adapter(name).rank == 0:
                del layer.adapters[name]
                layer.active = tuple(other for other in layer.active if other != name)

    def settle(self, name: str = "default") -> None:
        """Convert every part of an adapter to plain LoRA with its rank and scale, however it was trained. DoRA stays
        DoRA."""
        check_decided(self, name)
        layers = self.layers
        for path, adapter in self.adapters(name).items():
            if not isinstance(adapter, LoRA):
                layers[path].adapters[name] = plain_lora(layers[path].base_layer, adapter)
        self.discard_empty(name)

    @property
    def layers(self) -> dict[str, AdapterWrapper]:
        """Adapted layers by path in the model."""
        return {path: module for path, module in self.model.named_modules() if isinstance(module, AdapterWrapper)}

    @property
    def heads(self) -> dict[str, HeadWrapper]:
        """Modules that are trained in full, by path."""
        return {path: module for path, module in self.model.named_modules() if isinstance(module, HeadWrapper)}

    @property
    def names(self) -> tuple[str, ...]:
        adapters = (name for layer in self.layers.values() for name in layer.adapters)
        return tuple(dict.fromkeys([*adapters, *(name for head in self.heads.values() for name in head.copies)]))

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.active))

    def adapters(self, name: str = "default") -> dict[str, Adapter]:
        """The parts of one adapter, by the path of their base layer."""
        parts = {path: layer.adapter(name) for path, layer in self.layers.items() if name in layer.adapters}
        if not parts:
            self._check(name)
        return parts

    def trained_heads(self, name: str = "default") -> dict[str, nn.Module]:
        """One adapter's trained copies of heads, by path."""
        return {
            path: head.copies[name]
            for path, head in self.heads.items()
            if name in head.copies and not isinstance(head, TokenRows)
        }

    def token_rows(self, name: str = "default") -> dict[str, TokenRows]:
        """The embeddings and output heads in which one adapter has its own rows, by path."""
        return {path: head for path, head in self.heads.items() if isinstance(head, TokenRows) and name in head.copies}

    def parameters(self, name: str = "default") -> list[nn.Parameter]:
        return list(self.named_parameters(name).values())

    def named_parameters(self, name: str = "default") -> dict[str, nn.Parameter]:
        """The parameters of the adapters, their heads and their token rows, with names."""
        rows = {path: head.copies[name] for path, head in self.token_rows(name).items()}
        return {
            f"{path}.{own}": parameter
            for path, module in (*self.adapters(name).items(), *self.trained_heads(name).items(), *rows.items())
            for own, parameter in module.named_parameters()
        }

    def train(self, learning: bool = True) -> None:
        """Turn the adapters' dropout on or off. The base model's dropout stays off, since it isn't trained."""
        for layer in self.layers.values():
            layer.adapters.train(learning)

    def activate(self, *names: str) -> None:
        for name in names:
            self._check(name)
        for path, layer in self.layers.items():
            here = [name for name in names if name in layer.adapters]
            alone = next((name for name in here if not layer.adapter(name).additive), None)
            if alone is not None and len(here) > 1:
                raise TargetError(
                    f'adapter "{alone}" is DoRA, which rescales the whole weight and cannot be added to another; '
                    f'"{path}" would have {some(here)}. Activate it alone.'
                )
        for layer in self.layers.values():
            layer.active = tuple(name for name in names if name in layer.adapters)
        for path, head in self.heads.items():
            trained = [name for name in names if name in head.copies]
            if len(trained) > 1:
                raise TargetError(f'each of {some(trained)} has its own trained "{path}". Activate only one of them.')
            head.active = trained[0] if trained else None

    @contextmanager
    def base(self) -> Iterator[None]:
        """Context manager: inside, the model is the base model. The active adapters are restored afterwards."""
        before = [(layer, layer.active) for layer in self.layers.values()]
        heads = [(head, head.active) for head in self.heads.values()]
        for layer, _ in before:
            layer.active = ()
        for head, _ in heads:
            head.active = None
        try:
            yield
        finally:
            for layer, active in before:
                layer.active = active
            for head, trained in heads:
                head.active = trained

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Context manager: inside, the updates of the active adapters are multiplied by `strength` (0 is the base
        model, 1 the adapters as trained). Nested strengths multiply. Anything merged or written inside includes the
        strength."""
        check_strength(strength)
        with ExitStack() as stack:
            for layer in self.layers.values():
                for name in layer.active:
                    stack.enter_context(layer.adapter(name).scaled(strength))
            for head in self.heads.values():
                stack.enter_context(head.scaled(strength))
            yield

    def remove(self) -> nn.Module:
        """Remove all adapters and return the base model."""
        for path, module in reversed(list(self.model.named_modules(remove_duplicate=False))):  # the innermost first
            if isinstance(module, AdapterWrapper):
                module.active = ()
            if isinstance(module, Wrapper):
                self.model.set_submodule(path, module.base_layer)
        for parameter in self._required_grad:
            parameter.requires_grad_(True)
        return self.model

    def _adapted_at(self, path: str, places: dict[nn.Module, list[str]]) -> AdapterWrapper:
        """`places` are the paths of every module, which are walked once for all layers."""
        module = self.model.get_submodule(path)
        if isinstance(module, AdapterWrapper):
            return module
        if isinstance(module, TokenRows):
            raise TargetError(
                f'the rows of new tokens are trained in "{path}", so it gets no adapter. Leave it out of the targets.'
            )
        adapted = AdapterWrapper(module, self.model.get_submodule(path.rpartition(".")[0]))
        for place in places[module]:  # a layer that a model uses in two places is adapted in both
            self.model.set_submodule(place, adapted)
        return adapted

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise TargetError(f'this model has no adapter "{name}"; its adapters are {some(self.names) or "none"}.')


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise TargetError(f"the adapter name {name!r} is not allowed: use 1 to 64 letters, digits, _ or -.")


def refuse_adapted(model: nn.Module) -> None:
    if any(isinstance(module, Wrapper) for module in model.modules()):
        raise TargetError(
            "this model already has adapters. Give their AdapterSet, which inject returned (after training it is "
            "`trainable.adapters`), to rankwise.add_adapter to add another one, or call its `remove`."
        )


def discard(adapters: AdapterSet, name: str) -> None:
    """Take an adapter out, or what is there of it. Modules that no other one uses are the base's own again."""
    for layer in adapters.layers.values():
        layer.active = tuple(other for other in layer.active if other != name)
        if name in layer.adapters:
            del layer.adapters[name]
    for head in adapters.heads.values():
        head.active = None if head.active == name else head.active
        if name in head.copies:
            del head.copies[name]
    model = adapters.model
    for path, module in reversed(list(model.named_modules(remove_duplicate=False))):  # the innermost first
        if isinstance(module, Wrapper) and module.is_empty:
            model.set_submodule(path, module.base_layer)


def check_decided(adapters: AdapterSet, name: str = "default") -> None:
    """AdaLoRA that nobody allocated is LoRA of all the ranks it began with, which nobody asked for."""
    undecided = [path for path, adapter in adapters.adapters(name).items() if not is_decided(adapter)]
    if undecided:
        raise TrainingError(
            f'AdaLoRA has not decided the ranks of {len(undecided)} layers yet, such as "{undecided[0]}". '
            "Call after_step of TrainableAdaLora after every step, up to the last."
        )


@torch.no_grad()
def merge(adapters: AdapterSet, name: str = "default") -> nn.Module:
    """The base model with the change in its weights. No adapter is left over it, and none could be taken out again."""
    check_decided(adapters, name)
    layers = adapters.layers
    for path, adapter in adapters.adapters(name).items():
        host = layers[path].base_layer
        weight = weight_of(host)
        _part(adapters.model, owner_of(host), weight)
        changed = in_full(weight) + oriented(host, adapter.delta())
        if is_quantized(weight):
            host.weight = nn.Parameter(changed.to(weight.dtype), requires_grad=weight.requires_grad)
        else:
            weight.copy_(changed)
    for path, trained in adapters.trained_heads(name).items():
        base = adapters.heads[path].base_layer
        for weight in base.parameters():
            _part(adapters.model, base, weight)
        unpack_weights(base)
        base.load_state_dict(trained.state_dict())
    for rows in adapters.token_rows(name).values():
        rows.write(name)
    return adapters.remove()


def _part(model: nn.Module, trained: nn.Module, weight: Tensor) -> None:
    """Give every module outside `trained` that holds this weight a copy of its own."""
    own = set(trained.modules())
    others = [
        (module, name)
        for module in model.modules()
        if module not in own
        for name, parameter in module.named_parameters(recurse=False)
        if parameter is weight
    ]
    for module, name in others:
        setattr(module, name, nn.Parameter(weight.clone(), requires_grad=weight.requires_grad))
    config: Any = getattr(model, "config", None)
    if others and config is not None:
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
