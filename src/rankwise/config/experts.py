"""Experts of a mixture that a model holds as one parameter: adapted where they are named, and otherwise left out.

transformers 5 stacks the weights of all experts of a block, (experts, outputs, inputs) or (experts, inputs, outputs),
in parameters of one module, such as `mlp.experts.gate_up_proj`. Such a parameter is a target by its path, and each of
its experts gets factors of its own. `all-linear` and names that other layers have too leave it out, as in PEFT, since
the factors of all experts together are many times those of the other layers.

Some models compute their experts by code of their own. Their parameters cannot be adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from rankwise.config.modules import Modules
from rankwise.errors import TargetError, some

NAMED = 2
"""Parameters that a sentence names."""
PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
"""Names of the parameters in which transformers stacks weights of experts, in the order of its modules."""
NESTED = ".base_layer"
ALLOWED: Mapping[str, object] = {"method": "lora", "dropout": 0.0, "start": "uniform"}
"""Settings of adapters over experts. PEFT knows no dropout of theirs, and stores one rank for all experts of a
parameter, where AdaLoRA has many; EVA reads the inputs of a layer, and an expert is none."""


def expert_parameters(paths: Iterable[str], modules: Modules) -> list[str]:
    """Which of `paths` are parameters that hold the weights of several experts and can be adapted."""
    return [path for path in paths if modules[path].kind == "experts"]


def stacked_parameters(paths: Iterable[str], modules: Modules) -> list[str]:
    """Paths of the parameters in these modules that hold the weights of several experts and cannot be adapted."""
    return [f"{path}.{name}" if path else name for path in paths for name in modules[path].stacked]


def named_experts(matches: Callable[[str], bool], modules: Modules) -> tuple[list[str], list[str]]:
    """The parameters of experts that a target names, itself or by a module around them: those that can be adapted, and
    those that cannot."""
    around = {path: any(map(matches, _outwards(path))) for path in modules if _has_experts(path, modules)}
    own = [path for path in expert_parameters(modules, modules) if around[path]]
    inside = stacked_parameters([path for path, named in around.items() if named], modules)
    alone = [one for one in stacked_parameters(modules, modules) if matches(one)]
    return own, list(dict.fromkeys([*inside, *alone]))


def left_out_experts(adaptable: list[str], rest: list[str]) -> list[str]:
    """Notes about experts that a target leaves out."""
    notes: list[str] = []
    if adaptable:
        names = dict.fromkeys(_last_two(path) for path in adaptable)
        notes.append(
            f"{_counted(adaptable)}: they get no adapter and stay as they are. Add {some(names)} to the targets to "
            "adapt each expert"
        )
    if rest:
        notes.append(
            f"{_counted(rest)}, which the model computes by code of its own: they get no adapter and stay as they are"
        )
    return notes


def no_adapter_over(target: str, parameters: list[str]) -> str:
    """Why a target that names nothing but experts of a model's own code is refused."""
    return (
        f'target "{target}" names experts, over which no adapter can be laid, since the model computes them by code of '
        f"its own: {_counted(parameters)}. Leave it out; the linear layers around the experts can be adapted."
    )


def not_by_their_module(target: str, parameters: list[str]) -> str:
    """Why a target that names a module around experts is refused."""
    names = dict.fromkeys(_last_two(path) for path in parameters)
    return (
        f'target "{target}" names a module around experts: {_counted(parameters)}. Name the parameters: {some(names)}.'
    )


def refuse_beside_experts(experts: list[str], settings: Mapping[str, object]) -> None:
    """TargetError where experts are adapted with settings of an adapter that they do not have."""
    other = next((name for name, only in ALLOWED.items() if settings.get(name, only) != only), None)
    if experts and other is not None:
        raise TargetError(
            f"the targets include experts that lie in one parameter ({some(experts, NAMED)}), for which there is no "
            f"adapter.{other}={settings[other]}. Leave it out, or leave the experts out."
        )


def stored_names(paths: Iterable[str]) -> dict[str, str]:
    """Under which name PEFT stores the factors of each of these parameters, which are all that an adapter is over.

    PEFT wraps the module of the experts once for each parameter, in the module's order, and calls the factors by the
    wrapper: those of the last parameter lie at the module's own path, and those before it one `base_layer` deeper each.
    """
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    names: dict[str, str] = {}
    for module, inside in by_module.items():
        ordered = sorted(inside, key=lambda path: PARAMETERS.index(path.rpartition(".")[2]))
        names |= {path: module + NESTED * depth for depth, path in enumerate(reversed(ordered))}
    return {path: names[path] for path in paths}


def _counted(parameters: list[str]) -> str:
    hold = "1 parameter holds" if len(parameters) == 1 else f"{len(parameters)} parameters each hold"
    return f"{hold} the weights of all experts of a block ({some(parameters, NAMED)})"


def _has_experts(path: str, modules: Modules) -> bool:
    return modules[path].kind == "experts" or bool(modules[path].stacked)


def _last_two(path: str) -> str:
    """As short as it is clear, such as `experts.gate_up_proj`: the last name alone may be another layer's."""
    return ".".join(path.split(".")[-2:])


def _outwards(path: str) -> list[str]:
    """A path and those of all modules around it."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
