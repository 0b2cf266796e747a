"""How many parameters train, to the last one, and how large the adapter's file becomes.

    LoRA      r (I + O) of each layer; with DoRA O more, the lengths
    AdaLoRA   R (I + O + 1) of each layer, or of each part of a fused one, of the R that it begins with;
              at the end as many triplets are left as the budget says, each I + O in the file

The layers are those that `rankwise.inject` would take: the rule is the same one (config/matching.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.budget import BYTES_OF_FILE, BYTES_OF_NAMES, Budget, budget_of, initial_rank
from rankwise.config.matching import Modules, Seen, matched_paths, ranks_and_scales
from rankwise.planning.adapter_file import size_of_file
from rankwise.planning.shape import Layer, ModelShape

NAMES = {"linear": "Linear", "conv1d": "Conv1D", "conv2d": "Conv2d", "embedding": "Embedding"}


@dataclass(frozen=True)
class PlannedLayer:
    """A layer that is adapted. `ranks` is one, or one for each part of a fused layer under AdaLoRA."""

    layer: Layer
    ranks: tuple[int, ...]
    trainable: int

    @property
    def leaf(self) -> str:
        return self.layer.path.rpartition(".")[2]


@dataclass(frozen=True)
class Left:
    """What AdaLoRA's budget leaves at the end. Which triplets live is decided in training, and they differ in size, so
    the parameters lie between two bounds; `even` is what they are with the same mean rank everywhere."""

    amount: int
    """Of what the budget counts."""
    unit: str
    first: int
    """The same at the beginning."""
    in_units: tuple[int, int]
    """Both, the beginning's first, in the unit that they are told in: a budget of bytes is counted in parameters."""
    mean_rank: float
    least: int
    even: int
    most: int


@dataclass(frozen=True)
class Parameters:
    """`file_bytes` is the size of adapter_model.safetensors in float32 as it is written, and `file_bytes_half` what it
    were in 16 bits; of AdaLoRA, and of start eva, at most. A whole model has no adapter, and none of these."""

    method: str
    total: int
    """Of the base model, a shared weight once."""
    trainable: int
    adapted: tuple[PlannedLayer, ...]
    written: int
    """Numbers in the adapter's file; of AdaLoRA at most."""
    file_bytes: int | None
    file_bytes_half: int | None
    exact: bool
    """Whether the counts are exact; they are at most what is told where ranks are chosen by looking at data."""
    left: Left | None = None

    @property
    def ratio(self) -> float:
        """How many times fewer train."""
        return self.total / self.trainable

    @property
    def share(self) -> float:
        return self.trainable / self.total

    @property
    def by_leaf(self) -> dict[str, tuple[int, int]]:
        """Layers and their trainable parameters by the last name of their path."""
        layers, trainable = Counter[str](), Counter[str]()
        for planned in self.adapted:
            layers[planned.leaf] += 1
            trainable[planned.leaf] += planned.trainable
        return {leaf: (layers[leaf], trainable[leaf]) for leaf in layers}


def parameters_of(shape: ModelShape, spec: LoraConfig | AdaLoraConfig | FullConfig) -> Parameters:
    if isinstance(spec, FullConfig):
        return Parameters(spec.method, shape.parameters, shape.parameters, (), 0, None, None, exact=True)
    paths = matched_paths(seen(shape), spec)
    by_path = {layer.path: layer for layer in shape.layers}
    layers = [by_path[path] for path in paths]
    return _lora(shape, spec, layers) if isinstance(spec, LoraConfig) else _adalora(shape, spec, layers)


def seen(shape: ModelShape) -> Modules:
    """Every module for matching, those that hold others among them."""
    tables = {layer.path for layer in shape.layers if layer.kind == "embedding"} | {
        layer.shares for layer in shape.layers if layer.shares
    }
    modules: dict[str, Seen] = {}
    for layer in shape.layers:
        parts = layer.path.split(".")
        for depth in range(1, len(parts)):
            modules.setdefault(".".join(parts[:depth]), Seen(None, "a module of several layers"))
        if layer.kind == "other":
            modules.setdefault(layer.path, Seen(None, layer.class_name))
        else:
            tied = layer.kind == "linear" and layer.shares in tables
            modules[layer.path] = Seen(layer.kind, NAMES[layer.kind], tied, layer.path == shape.head)
    return modules


def _lora(shape: ModelShape, spec: LoraConfig, layers: list[Layer]) -> Parameters:
    asked = ranks_and_scales([layer.path for layer in layers], spec)
    adapted = tuple(
        PlannedLayer(layer, (rank,), rank * (layer.inputs + layer.outputs) + (layer.outputs if spec.dora else 0))
        for layer, (rank, _) in zip(layers, asked, strict=True)
    )
    trainable = sum(planned.trainable for planned in adapted)
    ranks = [(layer, rank) for layer, (rank, _) in zip(layers, asked, strict=True)]
    return Parameters(
        "dora" if spec.dora else spec.method, shape.parameters, trainable, adapted, trainable,
        size_of_file(ranks, dora=spec.dora), size_of_file(ranks, dora=spec.dora, half=True), exact=spec.start != "eva",
    )  # fmt: skip


def _adalora(shape: ModelShape, spec: AdaLoraConfig, layers: list[Layer]) -> Parameters:
    parts = [layer.parts or (layer.outputs,) for layer in layers]
    places = [place for place, widths in enumerate(parts) for _ in widths]
    costs = [layers[place].inputs + layers[place].outputs for place in places]
    budget = budget_of(spec, costs, places, [layer.path for layer in layers])
    adapted = []
    for layer, widths in zip(layers, parts, strict=True):
        ranks = tuple(initial_rank(budget.mean_rank, (layer.inputs, width), spec.initial) for width in widths)
        held = sum(rank * (layer.inputs + width + 1) for rank, width in zip(ranks, widths, strict=True))
        adapted.append(PlannedLayer(layer, ranks, held))
    ranks = [rank for planned in adapted for rank in planned.ranks]
    left = _left(budget, costs, ranks)
    names = BYTES_OF_FILE + sum(BYTES_OF_NAMES + 2 * len(layer.path) for layer in layers)
    most = 4 * left.most + names
    if budget.in_bytes:
        most = min(most, budget.in_unit(left.amount))
    return Parameters(
        spec.method, shape.parameters, sum(planned.trainable for planned in adapted), tuple(adapted), left.most,
        most, min(most, 2 * left.most + names), exact=True, left=left,
    )  # fmt: skip


def _left(budget: Budget, costs: list[int], ranks: list[int]) -> Left:
    """The cheapest and the dearest that may be left, as the ranks at the beginning allow."""
    first = sum(cost * rank for cost, rank in zip(costs, ranks, strict=True)) + sum(budget.entries)
    first = first if budget.by_cost else sum(ranks)
    last = min(budget.last, first)
    told = budget.in_unit(first), budget.in_unit(last)
    even = round(sum(cost * min(budget.mean_rank, rank) for cost, rank in zip(costs, ranks, strict=True)))
    if budget.by_cost:
        return Left(last, budget.unit, first, told, budget.mean_rank, min(last, min(costs)), min(even, last), last)
    bounds = []
    for dearest in (False, True):
        rest, spent = last, 0
        for cost, rank in sorted(zip(costs, ranks, strict=True), reverse=dearest):
            spent += cost * min(rank, rest)
            rest -= min(rank, rest)
        bounds.append(spent)
    return Left(last, budget.unit, first, told, budget.mean_rank, bounds[0], even, bounds[1])
