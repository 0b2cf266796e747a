"""Which modules a spec's targets, layer numbers and patterns mean: one rule, for a model in memory and for a plan.

A word of letters, digits, `_`, `.` and `-` is a name: the end of a module's path, beginning at a dot. Anything else is
a regular expression for the path, or for its end beginning at a dot. Expressions run under a time limit, since one can
be written that never ends. Whatever matches nothing is an error that says what is near; nothing is left out in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import regex

from rankwise.config.adapters import AdapterConfig, LoraConfig
from rankwise.errors import TargetError, did_you_mean, some

ALL_LINEAR = "all-linear"
SECONDS_PER_MATCH = 0.05
_NAME = regex.compile(r"[A-Za-z0-9_.-]+")

HostKind = Literal["linear", "conv1d", "conv2d", "embedding"]
"""What an adapter can be laid over. A conv1d is GPT-2's linear layer, whose weight is stored as (I, O)."""


@dataclass(frozen=True)
class Seen:
    """What is asked of a module. `name` says what it is where it cannot be adapted; `tied` is a linear layer that
    reads an embedding's weight; `head` makes the logits."""

    kind: HostKind | None
    name: str
    tied: bool = False
    head: bool = False


Modules = Mapping[str, Seen]
"""By path, in the model's order."""


def matched_paths(modules: Modules, spec: AdapterConfig) -> list[str]:
    """The paths that `spec` names, in the model's order."""
    chosen: set[str] = set()
    for target in spec.targets:
        found = [path for path in _named(target, modules) if _in_layers(path, spec.layers)]
        if not found:
            raise TargetError(_nothing_in_layers(target, spec.layers, modules))
        chosen.update(found)
    paths = [path for path in modules if path in chosen]
    _refuse_absent_blocks(paths, spec, modules)
    _refuse_tied_head(paths, modules)
    if isinstance(spec, LoraConfig) and spec.dora:
        _refuse_without_rows(paths, modules)
    return paths


def ranks_and_scales(paths: list[str], spec: LoraConfig) -> list[tuple[int, float]]:
    """Of each path."""
    ranks = _by_pattern(paths, spec.rank_pattern, spec.rank, "rank_pattern")
    alphas = _by_pattern(paths, spec.alpha_pattern, spec.alpha, "alpha_pattern")
    return [
        (int(rank), alpha / (math.sqrt(rank) if spec.scaling == "sqrt-rank" else rank))
        for rank, alpha in zip(ranks, alphas, strict=True)
    ]


@lru_cache(maxsize=4096)
def matcher(pattern: str, said_in: str) -> Callable[[str], bool]:
    """Whether a path is meant by `pattern`."""
    name = pattern.replace(r"\.", ".")
    if _NAME.fullmatch(name):
        return lambda path: path == name or path.endswith(f".{name}")
    try:
        compiled = regex.compile(rf"(?:.*\.)?(?:{pattern})")
    except regex.error as error:
        raise TargetError(f'{said_in} "{pattern}" is no regular expression: {error}.') from None

    def matches(path: str) -> bool:
        try:
            return compiled.fullmatch(path, timeout=SECONDS_PER_MATCH) is not None
        except TimeoutError:
            raise TargetError(f'{said_in} "{pattern}" takes too long to match; write a simpler expression.') from None

    return matches


def layer_number(path: str) -> int | None:
    """The block a module stands in: the first number in its path."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def _named(target: str, modules: Modules, *, also_head: bool = False) -> list[str]:
    if target == ALL_LINEAR:
        return [
            path for path, seen in modules.items() if seen.kind in ("linear", "conv1d") and (also_head or not seen.head)
        ]
    meant = matcher(target, "target")
    found = [path for path in modules if meant(path)]
    hosts = [path for path in found if modules[path].kind]
    if found and not hosts:
        kinds = some(sorted({modules[path].name for path in found}))
        inside = [path for path in modules if any(path.startswith(f"{outer}.") for outer in found)]
        raise TargetError(
            f'target "{target}" names {kinds}, which cannot be adapted; linear layers, Conv1D and embeddings can. '
            f"Inside it are {some(_leaf_counts(inside, modules)) or 'none of these'}."
        )
    return hosts


def _in_layers(path: str, layers: tuple[int, ...] | None) -> bool:
    return layers is None or layer_number(path) in layers


def _refuse_absent_blocks(paths: list[str], spec: AdapterConfig, modules: Modules) -> None:
    """Each block that is asked for has a layer to adapt."""
    absent = sorted(set(spec.layers or ()) - {layer_number(path) for path in paths})
    if absent:
        there = {layer_number(path) for target in spec.targets for path in _named(target, modules, also_head=True)}
        blocks = ranges(number for number in there if number is not None)
        raise TargetError(
            f"--layers names {ranges(absent)}, but the targets are in blocks {blocks} of this model. Choose from "
            "these blocks."
        )


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2 and 5 as "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return some(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _nothing_in_layers(target: str, layers: tuple[int, ...] | None, modules: Modules) -> str:
    everywhere = _named(target, modules, also_head=True)
    if everywhere:
        numbers = sorted({number for path in everywhere if (number := layer_number(path)) is not None})
        here = f"blocks {numbers[0]}-{numbers[-1]}" if numbers else "no numbered block"
        return f'target "{target}" matches layers in {here}, and none in layers {some(map(str, layers or ()))}.'
    leaves = sorted({path.rpartition(".")[2] for path, seen in modules.items() if seen.kind})
    hint = did_you_mean(target.rpartition(".")[2], [*leaves, ALL_LINEAR])
    counts = some(_leaf_counts(modules, modules))
    return f'target "{target}" matches no layer of this model. Its layers are {counts}.{hint}'


def _leaf_counts(paths: Iterable[str], modules: Modules) -> list[str]:
    counts = Counter(path.rpartition(".")[2] for path in paths if modules[path].kind)
    return [f"{leaf} ({count}x)" for leaf, count in counts.items()]


def _refuse_tied_head(paths: list[str], modules: Modules) -> None:
    for path in paths:
        if modules[path].tied:
            raise TargetError(
                f'target "{path}" shares its weight with the input embedding, so an adapter on it could not be merged '
                "or served. Leave it out."
            )


def _refuse_without_rows(paths: list[str], modules: Modules) -> None:
    others = [f'"{path}" ({modules[path].name})' for path in paths if modules[path].kind not in ("linear", "conv1d")]
    if others:
        raise TargetError(
            f"dora is for linear layers and Conv1D, and the targets include {some(others)}. "
            "Leave these out, or set adapter.dora=false."
        )


def _by_pattern(
    paths: list[str], pattern: dict[str, int] | dict[str, float], otherwise: float, said_in: str
) -> list[float]:
    """The first key that matches decides, as in PEFT."""
    rules = [(matcher(key, said_in), value) for key, value in pattern.items()]
    for (meant, _), key in zip(rules, pattern, strict=True):
        if not any(meant(path) for path in paths):
            hint = did_you_mean(key, {path.rpartition(".")[2] for path in paths})
            raise TargetError(f'{said_in} "{key}" matches none of the {len(paths)} adapted layers.{hint}')
    return [next((value for meant, value in rules if meant(path)), otherwise) for path in paths]
