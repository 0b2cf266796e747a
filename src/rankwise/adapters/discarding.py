"""One adapter leaves a set, while others stay."""

from __future__ import annotations

from rankwise.adapters.experts import ExpertsWrapper
from rankwise.adapters.heads import HeadWrapper
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.wrapper import AdapterWrapper


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
        if isinstance(module, AdapterWrapper) and not module.adapters:
            model.set_submodule(path, module.host)
        elif isinstance(module, HeadWrapper) and module.is_empty:
            model.set_submodule(path, module.base_layer)
        elif isinstance(module, ExpertsWrapper) and not any(
            isinstance(one, AdapterWrapper) for one in module.modules()
        ):
            model.set_submodule(path, module.host)
