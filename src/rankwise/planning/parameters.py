"""How many of a model's parameters train, to the last one.

The layers are those that `rankwise.inject` would take: the rule is the same one (config/matching.py), and the settings
of the method count what trains of them (config/parameters.py).
"""

from __future__ import annotations

from rankwise.config.method import MethodConfig
from rankwise.config.modules import Modules, Seen
from rankwise.config.parameters import Parameters
from rankwise.planning.shape import ModelShape

NAMES = {
    "linear": "Linear", "conv1d": "Conv1D", "conv2d": "Conv2d", "embedding": "Embedding", "experts": "stacked experts",
}  # fmt: skip


def parameters_of(shape: ModelShape, spec: MethodConfig) -> Parameters:
    by_path = {layer.path: layer for layer in shape.layers}
    return spec.parameters(shape.parameters, [by_path[path] for path in spec.select(seen(shape)).paths], shape.heads)


def target_notes(shape: ModelShape, spec: MethodConfig) -> list[str]:
    """Sentences about targets that were understood and layers that were left out, as a training says them."""
    return spec.select(seen(shape)).notes


def seen(shape: ModelShape) -> Modules:
    """Every module for matching, those that hold others among them, and none that is trained whole."""
    tables = {layer.path for layer in shape.layers if layer.kind == "embedding"} | {
        layer.shares for layer in shape.layers if layer.shares
    }
    modules: dict[str, Seen] = {}
    for layer in shape.layers:
        if layer.path in shape.whole:
            continue
        parts = layer.path.split(".")
        for depth in range(1, len(parts)):
            modules.setdefault(".".join(parts[:depth]), Seen(None, "a module of several layers"))
        if layer.kind == "other":
            other = Seen(None, layer.class_name, problem=layer.problem, stacked=layer.stacked)
            modules.setdefault(layer.path, other)
        else:
            tied, head = layer.kind == "linear" and layer.shares in tables, layer.path == shape.head
            modules[layer.path] = Seen(layer.kind, NAMES[layer.kind], tied, head, layer.channels)
    return modules
