"""PEFT's factors of stacked experts (`target_parameters`), which it stores as two matrices for all experts of a block.

    <module>.lora_A.weight   (E R, I)   the factors of the experts under one another:     row e R + r
    <module>.lora_B.weight   (O, R E)   the experts of each rank side by side:            column r E + e

of the last adapted parameter of a module; those of the one before it lie at `<module>.base_layer` (config/experts.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rankwise.adapters.experts import StackedWeight
from rankwise.config.experts import NESTED, PARAMETERS, stored_names
from rankwise.config.expressions import matches_of
from rankwise.errors import one_line


def parameters_by_name(
    stored: Sequence[str], layers: Sequence[str], targets: Sequence[str], modules: Mapping[str, nn.Module] | None
) -> dict[str, str]:
    """Which parameter each of the `stored` paths of factors is for. `layers` are `target_modules`, whose paths are not
    among them, and `targets` are `target_parameters`."""
    if not targets:
        return {}
    declared = {path for matching in matches_of(layers, stored, "target_modules").values() for path in matching}
    holders = dict.fromkeys(_holder(path) for path in stored if path not in declared)
    names: dict[str, str] = {}
    for holder in holders:
        inside = [f"{holder}.{leaf}" for leaf in PARAMETERS if _is_named(f"{holder}.{leaf}", targets)]
        if modules is not None:
            inside = [path for path in inside if isinstance(modules.get(path), StackedWeight)]
        names |= {name: path for path, name in stored_names(inside).items()}
    return {path: names[path] for path in stored if path in names}


def unmatched_parameters(targets: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """Why some of `target_parameters` are refused: they have no factors, or are no experts."""
    known = ", ".join(PARAMETERS)
    return [
        f'the target parameter "{one_line(target)}" has no factors of experts (parameters that are read: {known})'
        for target in targets
        if not any(_is_named(path, [target]) for path in parameters)
    ]


def lost_parameters(targets: Sequence[str], there: set[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Parameters of experts that the targets name in a model, and that are not `there` in the file."""
    hosts = [path for path, module in modules.items() if isinstance(module, StackedWeight)]
    return [path for path in hosts if _is_named(path, targets) and path not in there]


def apart(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (E, R, I) and B (E, O, R) of the stored matrices."""
    experts = A.shape[0] // rank
    return A.view(experts, rank, A.shape[1]), B.view(len(B), rank, experts).permute(2, 0, 1).contiguous()


def together(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices as PEFT stores them."""
    return A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)


def _holder(path: str) -> str:
    while path.endswith(NESTED):
        path = path.removesuffix(NESTED)
    return path


def _is_named(path: str, targets: Sequence[str]) -> bool:
    return any(path == target or path.endswith(f".{target}") for target in targets)
