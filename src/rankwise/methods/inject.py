"""Adapters over a module in memory, for your own training loop: `inject` lays the first, `add_adapter` another.

Nothing here knows runs, rows or how a model is loaded: the methods, which do, call `add_layers` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice, check_choices, choose, notes_about
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import ConfigError


def inject(
    model: nn.Module, spec: LoraConfig | AdaLoraConfig | None = None, *, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None, heads: Sequence[str] = (),
) -> AdapterSet:  # fmt: skip
    """Freeze `model` and lay an adapter over the layers that `spec` names. Untrained, it changes nothing."""
    adapters = AdapterSet(model)
    try:
        add_adapter(adapters, spec or LoraConfig(), name, seed, choices, heads)
    except BaseException:
        adapters.remove()
        raise
    return adapters


def add_adapter(
    adapters: AdapterSet, spec: LoraConfig | AdaLoraConfig, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None, heads: Sequence[str] = (),
) -> None:  # fmt: skip
    """Lay a new adapter over the layers that `spec` names, and make it the active one. With start "eva" the `choices`
    are those of `eva_choices`. The modules named in `heads` are trained whole beside it."""
    if spec.start_from is not None:
        raise ConfigError([
            f'start_from "{spec.start_from}" is for rankwise.train. To lay an adapter that exists over a model, use '
            "rankwise.read_peft."
        ])  # fmt: skip
    adapters.add_heads(heads, name)
    adapters.notes += notes_about(adapters.model, spec)
    add_layers(adapters, spec, name, seed, choices)


def add_layers(
    adapters: AdapterSet, spec: LoraConfig | AdaLoraConfig, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None,
) -> None:  # fmt: skip
    if spec.method not in ADDED:
        raise ConfigError([f"inject lays {' or '.join(ADDED)}, and the method is {spec.method}. Use rankwise.train."])
    ADDED[spec.method](adapters, spec, name, seed, choices)


def _add_factors(
    adapters: AdapterSet, spec: LoraConfig, name: str, seed: int, choices: list[Choice] | None
) -> None:  # fmt: skip
    check_choices(choices, needed=spec.start == "eva")
    chosen = choose(adapters.model, spec) if choices is None else choices
    adapters.attach(chosen, name, spec.dropout, seed, dora=spec.dora)


def _add_triplets(
    adapters: AdapterSet, spec: AdaLoraConfig, name: str, seed: int, choices: list[Choice] | None
) -> None:  # fmt: skip
    check_choices(choices, needed=False)
    adapters.attach_triplets(spec, name, seed)


ADDED: dict[str, Callable[[AdapterSet, Any, str, int, list[Choice] | None], None]] = {
    "lora": _add_factors, "adalora": _add_triplets,
}  # fmt: skip
"""What a method lays over the layers, by the name that its settings have as `method`."""
