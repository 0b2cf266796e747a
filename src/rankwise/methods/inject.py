"""Adapters over a module in memory, for your own training loop: `inject` lays the first, `add_adapter` another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice, notes_about
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import ConfigError
from rankwise.methods.registry import METHODS


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
    METHODS[spec.method](spec).add_to(adapters, name, seed, choices)
