"""Experts of a mixture that a model holds as one parameter: no adapter is laid over them, and every choice says so.

transformers 5 stacks the weights of all experts of a block, (experts, outputs, inputs) or (experts, inputs, outputs),
in parameters of one module, such as `mlp.experts.gate_up_proj`. There is no layer of an expert that an adapter could
be laid over. The linear layers around them (attention, shared experts) are adapted as in every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rankwise.config.modules import Modules
from rankwise.errors import some

NAMED = 2
"""Parameters that a sentence names."""


def stacked_parameters(paths: Iterable[str], modules: Modules) -> list[str]:
    """Paths of the parameters in these modules that hold the weights of several experts."""
    return [f"{path}.{name}" if path else name for path in paths for name in modules[path].stacked]


def stacked_matching(matches: Callable[[str], bool], modules: Modules) -> list[str]:
    """Those that a target names, itself or by a module around it."""
    inside = [path for path in modules if modules[path].stacked and any(matches(outer) for outer in _outwards(path))]
    named = [one for one in stacked_parameters(modules, modules) if matches(one)]
    return list(dict.fromkeys([*stacked_parameters(inside, modules), *named]))


def left_out_experts(parameters: list[str]) -> list[str]:
    """A note about experts that a target leaves out."""
    if not parameters:
        return []
    return [
        f"{_counted(parameters)}: they get no adapter and stay as they are. The other linear layers that the targets "
        "name get one"
    ]


def no_adapter_over(target: str, parameters: list[str]) -> str:
    """Why a target that names experts alone is refused."""
    return (
        f'target "{target}" names experts, over which no adapter can be laid: {_counted(parameters)}. Leave it out; '
        "the linear layers around the experts can be adapted."
    )


def _counted(parameters: list[str]) -> str:
    hold = "1 parameter holds" if len(parameters) == 1 else f"{len(parameters)} parameters each hold"
    return f"{hold} the weights of all experts of a block ({some(parameters, NAMED)})"


def _outwards(path: str) -> list[str]:
    """A module's path and those of all modules around it."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
