"""How many of a model's parameters train, to the last one; and what it is made of, in a few lines: its layers by kind
and shape, and what the targets of an adapter choose.

What is trained whole beside an adapter, a classifier's new head, is counted apart: it depends on the number of classes.
The layers are those that `rankwise.inject` would take: the rule is the same one (config/matching.py), and the settings
of the method count what trains of them (config/parameters.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.config.adapters import LoraConfig
from rankwise.config.method import MethodConfig
from rankwise.config.modules import ALL_CONV, ALL_LINEAR, Layer, Modules, Seen, image_readers
from rankwise.config.parameters import Parameters
from rankwise.errors import TargetError
from rankwise.planning.shape import ModelShape

NAMES = {
    "linear": "Linear", "conv1d": "Conv1D", "conv2d": "Conv2d", "embedding": "Embedding", "experts": "stacked experts",
}  # fmt: skip
RANK = 16
TARGETS = (ALL_LINEAR, ALL_CONV)


def parameters_of(shape: ModelShape, config: MethodConfig) -> Parameters:
    by_path = {layer.path: layer for layer in shape.layers}
    return config.parameters(
        shape.parameters, [by_path[path] for path in config.select(seen(shape)).paths], shape.heads
    )


def target_notes(shape: ModelShape, config: MethodConfig) -> list[str]:
    """Sentences about targets that were understood and layers that were left out, as a training says them."""
    return config.select(seen(shape)).notes


def seen(shape: ModelShape) -> Modules:
    """Every module for matching, those that hold others among them, and none that is trained whole."""
    tables = {layer.path for layer in shape.layers if layer.kind == "embedding"} | {
        layer.shares for layer in shape.layers if layer.shares
    }
    modules: dict[str, Seen] = {}
    for layer in shape.layers:
        if layer.path in shape.full_paths:
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


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one kind and shape. Sizes are 0 and None for a kind that no adapter fits."""

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] | None
    names: tuple[str, ...]
    """The last names of their paths, in the model's order."""
    count: int
    parameters: int
    remark: str = ""
    """Why all-linear or all-conv leaves them alone."""
    problem: str = ""
    """Why no adapter can be laid over these convolutions."""
    experts: int = 0
    """How many experts each of these parameters holds."""

    @property
    def shape(self) -> str:
        """As a person writes it: "384 -> 1,536", with a kernel "3 -> 384, 14 x 14", of experts "8 x 32 -> 64"."""
        if not self.inputs:
            return ""
        kernel = "" if self.kernel is None else f", {self.kernel[0]} x {self.kernel[1]}"
        experts = f"{self.experts:,} x " if self.experts else ""
        return f"{experts}{self.inputs:,} -> {self.outputs:,}{kernel}"


@dataclass(frozen=True)
class TargetChoice:
    """What one target chooses, with LoRA of rank 16; `refusal` says why nothing."""

    target: str
    paths: tuple[str, ...] = ()
    trainable: int = 0
    file_bytes: int = 0
    notes: tuple[str, ...] = ()
    refusal: str | None = None


def groups_of(shape: ModelShape) -> list[LayerGroup]:
    """In the order in which each kind and shape first occurs, and those that can be adapted before the others."""
    modules = seen(shape)
    reading = set(image_readers(modules))
    groups: defaultdict[tuple[object, ...], list[Layer]] = defaultdict(list)
    for layer in shape.layers:
        kind, remark = NAMES.get(layer.kind, layer.class_name), _remark(layer, shape, reading)
        groups[kind, layer.inputs, layer.outputs, layer.experts, layer.kernel, remark, layer.problem].append(layer)
    listed = [_group(layers, _remark(layers[0], shape, reading)) for layers in groups.values()]
    return sorted(listed, key=lambda group: not group.inputs)


def _group(layers: Sequence[Layer], remark: str) -> LayerGroup:
    first = layers[0]
    return LayerGroup(
        NAMES.get(first.kind, first.class_name), first.channels or first.inputs, first.outputs, kernel=first.kernel,
        names=tuple(dict.fromkeys(_name(layer.path) for layer in layers)), count=len(layers),
        parameters=sum(layer.parameters for layer in layers), remark=remark, problem=first.problem,
        experts=first.experts,
    )  # fmt: skip


def _name(path: str) -> str:
    """The last name of a path, with its number where it has one."""
    parent, _, leaf = path.rpartition(".")
    return f"{parent.rpartition('.')[2]}.{leaf}" if leaf.isdecimal() and parent else leaf


def _remark(layer: Layer, shape: ModelShape, reading: set[str]) -> str:
    if layer.path in shape.full_paths:
        return f"new head, trained whole; here for {shape.outputs} classes"
    if layer.path == shape.head:
        return "output head"
    if layer.experts:
        return "adapted where they are named"
    return "reads the image" if layer.path in reading else ""


def choices_of(shape: ModelShape) -> list[TargetChoice]:
    return [_choice(shape, target) for target in TARGETS]


def default_target(shape: ModelShape) -> str:
    """The target that an adapter of this model has where none is given."""
    return next((choice.target for choice in choices_of(shape) if choice.refusal is None), ALL_LINEAR)


def _choice(shape: ModelShape, target: str) -> TargetChoice:
    spec, by_path = LoraConfig(rank=RANK, targets=(target,)), {layer.path: layer for layer in shape.layers}
    try:
        selection = spec.select(seen(shape))
    except TargetError as error:
        return TargetChoice(target, refusal=str(error))
    counted = spec.parameters(shape.parameters, [by_path[path] for path in selection.paths])
    return TargetChoice(
        target, tuple(selection.paths), counted.trainable, counted.file_bytes or 0, tuple(selection.notes)
    )
