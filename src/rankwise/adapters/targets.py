"""Which layers of a model in memory get an adapter, with what rank and scale. The rule is config/matching.py's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from rankwise.adapters.adapter import conv_problem
from rankwise.adapters.base_layers import kind_of, weight_of
from rankwise.adapters.experts import stacked_by_own_code, stacked_hosts
from rankwise.adapters.heads import HeadWrapper
from rankwise.adapters.token_rows import TokenRows
from rankwise.adapters.wrapper import Wrapper
from rankwise.config.adapters import AdapterConfig, LoraConfig
from rankwise.config.method import MethodConfig
from rankwise.config.modules import Modules, Seen
from rankwise.config.modules import layer_number as layer_number
from rankwise.errors import TargetError


@dataclass(frozen=True)
class Choice:
    """`A` is what that factor starts as; None for a random start."""

    path: str
    rank: int
    scale: float
    A: Tensor | None = field(default=None, compare=False, repr=False)


def check_choices(choices: list[Choice] | None, *, needed: bool) -> None:
    if (choices is not None) != needed:
        raise TargetError('LoRA with start "eva" needs `choices` from eva_choices; leave them out otherwise.')


def notes_about(model: nn.Module, config: MethodConfig) -> list[str]:
    """Sentences about the targets of `config` that a user should read: old names, and layers that were left out."""
    return config.select(seen(model)).notes


def choose(model: nn.Module, config: LoraConfig) -> list[Choice]:
    """The layers that `config` names, in the model's order, with the rank and scale of each."""
    paths = chosen_paths(model, config)
    return [Choice(path, *asked) for path, asked in zip(paths, config.ranks_and_scales(paths), strict=True)]


def chosen_paths(model: nn.Module, config: AdapterConfig) -> list[str]:
    return config.select(seen(model)).paths


def seen(model: nn.Module) -> Modules:
    """The modules of a model as targets see them, without those that are trained whole."""
    modules, head = _outside_heads(model), output_head(model)
    tables = {id(weight_of(module)) for module in modules.values() if isinstance(module, nn.Embedding)}
    return {path: _seen(module, head, tables) for path, module in modules.items()}


def _seen(module: nn.Module, head: nn.Module | None, tables: set[int]) -> Seen:
    """`tables` are the weights of all embeddings, also of a model's own class."""
    kind, name = kind_of(module), type(module).__name__
    if isinstance(module, nn.Conv2d):
        return Seen(kind, name, head=module is head, channels=module.in_channels, problem=conv_problem(module))
    tied = kind == "linear" and id(weight_of(module)) in tables
    return Seen(kind, name, tied, module is head, stacked=() if kind else stacked_by_own_code(module))


def host_view(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path, as if no adapter were there: an adapted layer shows as its base layer, and so does a
    head that is trained whole. Parameters that stack the weights of experts are among them, as layers."""
    wrapped = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Wrapper))
    view: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if not path or path.startswith(wrapped):
            continue
        view[path] = module
        if isinstance(module, Wrapper):
            view |= {f"{path}.{own}".rstrip("."): part for own, part in module.base_layer.named_modules()}
        view |= stacked_hosts(path, view[path])
    return view


def _outside_heads(model: nn.Module) -> dict[str, nn.Module]:
    """What is trained whole gets no adapter. A table of which some rows are trained is seen, and refused by name."""
    wrappers = [(path, module) for path, module in model.named_modules() if isinstance(module, HeadWrapper)]
    heads = [path for path, module in wrappers if not isinstance(module, TokenRows)]
    inside = tuple(f"{path}." for path in heads)
    return {path: one for path, one in host_view(model).items() if path not in heads and not path.startswith(inside)}


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, which `all-linear` leaves alone."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return head.base_layer if isinstance(head, Wrapper) else head


def tables_of_the_head(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The embeddings among `paths` that share their weight with the output head."""
    shared, modules = getattr(output_head(model), "weight", None), host_view(model)
    return [path for path in paths if isinstance(at := modules.get(path), nn.Embedding) and at.weight is shared]
