"""Adapters over a module in memory, for your own training loop: `inject` lays the first, `add_adapter` another.

Nothing here knows runs, rows or how a model is loaded: the methods, which do, call `add_layers` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rankwise.adapters.base_layers import adalora_for, features_of, split_of
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice, check_choices, choose, chosen_paths, notes_about
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.parameters import budget_of
from rankwise.errors import ConfigError


def inject(
    model: nn.Module, config: LoraConfig | AdaLoraConfig | None = None, *, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None, heads: Sequence[str] = (),
) -> AdapterSet:  # fmt: skip
    """Freeze `model` and add an adapter to the layers that `config` selects. Before training, it doesn't change the
    outputs."""
    adapters = AdapterSet(model)
    try:
        add_adapter(adapters, config or LoraConfig(), name, seed, choices, heads)
    except BaseException:
        adapters.remove()
        raise
    return adapters


def add_adapter(
    adapters: AdapterSet, config: LoraConfig | AdaLoraConfig, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None, heads: Sequence[str] = (),
) -> None:  # fmt: skip
    """Add another adapter to the layers that `config` selects, and make it the active one. With start "eva", `choices`
    is the result of `eva_choices`. The modules named in `heads` are trained in full along with it."""
    if config.start_from is not None:
        raise ConfigError([
            f'start_from "{config.start_from}" is for rankwise.train. To lay an adapter that exists over a model, use '
            "rankwise.read_peft."
        ])  # fmt: skip
    adapters.add_heads(heads, name)
    adapters.notes += notes_about(adapters.model, config)
    add_layers(adapters, config, name, seed, choices)


def add_layers(
    adapters: AdapterSet, config: LoraConfig | AdaLoraConfig, name: str = "default", seed: int = 0,
    choices: list[Choice] | None = None,
) -> None:  # fmt: skip
    if config.method not in ADDED:
        raise ConfigError([f"inject lays {' or '.join(ADDED)}, and the method is {config.method}. Use rankwise.train."])
    ADDED[config.method](adapters, config, name, seed, choices)


def _add_factors(
    adapters: AdapterSet, config: LoraConfig, name: str, seed: int, choices: list[Choice] | None
) -> None:  # fmt: skip
    check_choices(choices, needed=config.start == "eva")
    chosen = choose(adapters.model, config) if choices is None else choices
    adapters.attach(chosen, name, config.dropout, seed, dora=config.dora)


def _add_triplets(
    adapters: AdapterSet, config: AdaLoraConfig, name: str, seed: int, choices: list[Choice] | None
) -> None:  # fmt: skip
    check_choices(choices, needed=False)
    generator = torch.Generator().manual_seed(seed)
    paths = chosen_paths(adapters.model, config)
    sizes = {path: features_of(adapters.base_layer(path)) for path in paths}
    splits = {path: split_of(adapters.model, path, sizes[path][1]) for path in paths}
    counts = [len(split.names) if split else 1 for split in splits.values()]
    layers = [layer for layer, count in enumerate(counts) for _ in range(count)]
    mean_rank = budget_of(config, [sum(sizes[paths[layer]]) for layer in layers], layers, paths).mean_rank
    adapters.add(
        ((path, adalora_for(adapters.base_layer(path), config, mean_rank, splits[path], generator)) for path in paths),
        name,
    )


ADDED: dict[str, Callable[[AdapterSet, Any, str, int, list[Choice] | None], None]] = {
    "lora": _add_factors, "adalora": _add_triplets,
}  # fmt: skip
"""What a method lays over the layers, by the name that its settings have as `method`."""
