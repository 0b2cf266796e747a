"""Which layers get an adapter, with what rank and scale.

One rule matches targets, layer numbers and patterns alike. A word of letters, digits, `_`, `.` and `-` is a name:
the end of a module's path, beginning at a dot. Anything else is a regular expression for the path, or for its end
beginning at a dot. Expressions run under a time limit, since one can be written that never ends. Whatever matches
nothing is an error that says what is near; nothing is left out in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import regex
from torch import Tensor, nn

from rankwise.adapters.adapted import Adapted
from rankwise.adapters.hosts import is_conv1d, is_host, is_linear, takes_dora, weight_of
from rankwise.errors import TargetError, did_you_mean, some
from rankwise.spec.adapters import AdapterSpec, LoraSpec

ALL_LINEAR = "all-linear"
SECONDS_PER_MATCH = 0.05
_NAME = regex.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Choice:
    """`A` is what that factor starts as; None for a random start."""

    path: str
    rank: int
    scale: float
    A: Tensor | None = field(default=None, compare=False, repr=False)


def choose(model: nn.Module, spec: LoraSpec) -> list[Choice]:
    """The layers that `spec` names, in the model's order, with the rank and scale of each."""
    paths = chosen_paths(model, spec)
    if spec.dora:
        _refuse_without_rows(paths, host_view(model))
    ranks = _by_pattern(paths, spec.rank_pattern, spec.rank, "rank_pattern")
    alphas = _by_pattern(paths, spec.alpha_pattern, spec.alpha, "alpha_pattern")
    return [
        Choice(path, int(rank), alpha / (math.sqrt(rank) if spec.scaling == "sqrt-rank" else rank))
        for path, rank, alpha in zip(paths, ranks, alphas, strict=True)
    ]


def chosen_paths(model: nn.Module, spec: AdapterSpec) -> list[str]:
    modules = host_view(model)
    head = output_head(model)
    chosen: set[str] = set()
    for target in spec.targets:
        found = [path for path in _named(target, modules, head) if _in_layers(path, spec.layers)]
        if not found:
            raise TargetError(_nothing_in_layers(target, spec.layers, modules))
        chosen.update(found)
    paths = [path for path in modules if path in chosen]
    _refuse_tied_head(paths, modules)
    return paths


def host_view(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path, as if no adapter were there: an adapted layer shows as its host."""
    wrapped = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Adapted))
    return {
        path: module.host if isinstance(module, Adapted) else module
        for path, module in model.named_modules()
        if path and not path.startswith(wrapped)
    }


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, which `all-linear` leaves alone."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return head.host if isinstance(head, Adapted) else head


def tables_of_the_head(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are embeddings and share their weight with the output head."""
    shared, modules = getattr(output_head(model), "weight", None), host_view(model)
    return [path for path in paths if isinstance(at := modules.get(path), nn.Embedding) and at.weight is shared]


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


def _named(target: str, modules: dict[str, nn.Module], head: nn.Module | None) -> list[str]:
    if target == ALL_LINEAR:
        return [
            path for path, module in modules.items() if (is_linear(module) or is_conv1d(module)) and module is not head
        ]
    meant = matcher(target, "target")
    found = [path for path in modules if meant(path)]
    hosts = [path for path in found if is_host(modules[path])]
    if found and not hosts:
        kinds = some(sorted({type(modules[path]).__name__ for path in found}))
        inside = [path for path in modules if any(path.startswith(f"{outer}.") for outer in found)]
        raise TargetError(
            f'target "{target}" names {kinds}, which cannot be adapted; linear layers, Conv1D and embeddings can. '
            f"Inside it are {some(_leaf_counts(inside, modules)) or 'none of these'}."
        )
    return hosts


def _in_layers(path: str, layers: tuple[int, ...] | None) -> bool:
    return layers is None or layer_number(path) in layers


def layer_number(path: str) -> int | None:
    """The block a module stands in: the first number in its path."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def _nothing_in_layers(target: str, layers: tuple[int, ...] | None, modules: dict[str, nn.Module]) -> str:
    everywhere = _named(target, modules, None)
    if everywhere:
        numbers = sorted({number for path in everywhere if (number := layer_number(path)) is not None})
        here = f"blocks {numbers[0]}-{numbers[-1]}" if numbers else "no numbered block"
        return f'target "{target}" matches layers in {here}, and none in layers {some(map(str, layers or ()))}.'
    leaves = sorted({path.rpartition(".")[2] for path, module in modules.items() if is_host(module)})
    hint = did_you_mean(target.rpartition(".")[2], [*leaves, ALL_LINEAR])
    counts = some(_leaf_counts(modules, modules))
    return f'target "{target}" matches no layer of this model. Its layers are {counts}.{hint}'


def _leaf_counts(paths: Iterable[str], modules: dict[str, nn.Module]) -> list[str]:
    counts = Counter(path.rpartition(".")[2] for path in paths if is_host(modules[path]))
    return [f"{leaf} ({count}x)" for leaf, count in counts.items()]


def _refuse_tied_head(paths: list[str], modules: dict[str, nn.Module]) -> None:
    """Any table counts, also one of a model's own class."""
    tables = {id(weight_of(module)) for module in modules.values() if isinstance(module, nn.Embedding)}
    for path in paths:
        if is_linear(modules[path]) and id(weight_of(modules[path])) in tables:
            raise TargetError(
                f'target "{path}" shares its weight with the input embedding, so an adapter on it could not be merged '
                "or served. Leave it out."
            )


def _refuse_without_rows(paths: list[str], modules: dict[str, nn.Module]) -> None:
    others = [f'"{path}" ({type(modules[path]).__name__})' for path in paths if not takes_dora(modules[path])]
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
