"""How many parameters train, to the last one, and how large the adapter's file becomes.

LoRA      r (I + O) of each layer, and of each expert; with DoRA O more, the lengths
AdaLoRA   R (I + O + 1) of each layer, or of each part of a fused one, of the R that it begins with;
          at the end as many triplets are left as the budget says, each I + O in the file; a budget in bytes includes
          the largest possible header
heads     all weights of the modules that are trained whole beside an adapter, such as a classifier's new head

adapter_model.safetensors, as `adapters/formats/peft.py` writes it; a test holds the two against each other:

    8 bytes   length of the header, which is padded to a multiple of 8
    header    JSON: for each tensor its name, type, shape and place, in the order of the names
    numbers   of all tensors, one after another
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rankwise.config.experts import stored_names
from rankwise.config.modules import Heads, Layer
from rankwise.errors import ConfigError

PREFIX = "base_model.model."
NO_HEADS: Heads = {}


def size_of_file(
    ranks: Sequence[tuple[Layer, int]], heads: Heads = NO_HEADS, *, dora: bool = False, half: bool = False
) -> int:
    """In bytes. `half`: in 16 bits."""
    experts = stored_names([layer.path for layer, _ in ranks if layer.experts])
    factors = [
        tensor for layer, rank in ranks
        for tensor in _tensors(layer, experts.get(layer.path, layer.path), rank, dora=dora)
    ]  # fmt: skip
    return bytes_of([*factors, *((PREFIX + name, size) for name, size in heads.items())], half=half)


def bytes_of(tensors: Iterable[tuple[str, tuple[int, ...]]], *, half: bool = False) -> int:
    """The size of a file with tensors of these names and sizes."""
    size, kind = (2, "F16") if half else (4, "F32")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensors):
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def _tensors(layer: Layer, name: str, rank: int, *, dora: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The ranks of all experts of one parameter lie in one tensor."""
    rank *= max(1, layer.experts)
    A, B, path = (rank, layer.inputs), (layer.outputs, rank), f"{PREFIX}{name}"
    if layer.kind == "embedding":
        yield f"{path}.lora_embedding_A", A
        yield f"{path}.lora_embedding_B", B
        return
    if layer.kernel is not None:
        A = (rank, layer.inputs // math.prod(layer.kernel), *layer.kernel)
        B = (*B, 1, 1)
    yield f"{path}.lora_A.weight", A
    yield f"{path}.lora_B.weight", B
    if dora:
        yield f"{path}.lora_magnitude_vector", (layer.outputs,)


BYTES_OF_NAMES = 226
"""Largest size of the header entry of one pair of factors, without its path, in a file of less than a gigabyte."""
BYTES_OF_FILE = 64
"""Size of the header without the entries of the pairs."""
BYTES_PER_PARAMETER = 4
BudgetKind = Literal["rank", "triplets", "parameters", "bytes"]
UNITS: dict[str, BudgetKind] = {
    "": "rank", "rank": "rank", "triplet": "triplets", "triplets": "triplets", "parameter": "parameters",
    "parameters": "parameters", "params": "parameters", "b": "bytes",
}  # fmt: skip
LARGEST_BUDGET = 1e13
TIMES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


class BudgetSettings(Protocol):
    @property
    def budget(self) -> str: ...
    @property
    def budget_unit(self) -> Literal["triplets", "parameters"]: ...


@dataclass(frozen=True)
class Budget:
    """`last` is how much may remain at the end: a number of parameters if `by_cost`, of triplets otherwise."""

    last: int
    by_cost: bool
    mean_rank: float
    """Rank of every layer if all layers get the same share."""
    entries: tuple[int, ...]
    """Fixed cost of each layer that keeps any rank, in parameters: its names in the file, for a budget in bytes."""
    in_bytes: bool

    def in_unit(self, amount: int) -> int:
        """Convert a number of triplets or parameters to the unit of messages."""
        return amount * BYTES_PER_PARAMETER + BYTES_OF_FILE if self.in_bytes else amount

    @property
    def unit(self) -> str:
        return "bytes" if self.in_bytes else "parameters" if self.by_cost else "triplets"


def parse_budget(text: str) -> tuple[BudgetKind, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)\s*(b|rank|triplets?|parameters?|params|)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise ValueError("a budget is a mean rank (8), 1680 triplets, 600k parameters, or a size (2MB)")
    kind, amount = UNITS[found[3]], float(found[1]) * TIMES[found[2]]
    if kind == "rank" and not 0 < amount <= 4096:
        raise ValueError("a mean rank is at most 4096; write a size as 2MB, or parameters as 600k parameters")
    if amount > LARGEST_BUDGET:
        raise ValueError("a budget is at most 1e13")
    return kind, amount


def budget_of(config: BudgetSettings, costs: Sequence[int], layers: Sequence[int], paths: Sequence[str]) -> Budget:
    """Resolve the budget. `costs` are the parameters of a triplet of each part; `layers` index its layer in `paths`."""
    kind, amount = parse_budget(config.budget)
    parts, dearest = len(costs), sum(costs)
    names = [BYTES_OF_NAMES + 2 * len(path) if kind == "bytes" else 0 for path in paths]
    entries = [-(-size // BYTES_PER_PARAMETER) for size in names]
    if kind in ("rank", "triplets"):
        triplets = round(amount * parts) if kind == "rank" else round(amount)
        by_cost = config.budget_unit == "parameters"
        last = round(triplets * dearest / parts) if by_cost else triplets
        mean_rank = triplets / parts
    else:
        last = int(amount) if kind == "parameters" else int((amount - BYTES_OF_FILE) // BYTES_PER_PARAMETER)
        by_cost, mean_rank = True, max(0, last - sum(entries)) / dearest
    budget = Budget(last, by_cost, mean_rank, tuple(entries), in_bytes=kind == "bytes")
    least = min(cost + entries[layer] for cost, layer in zip(costs, layers, strict=True)) if by_cost else 1
    if last < least:
        smallest = f"; the smallest triplet has {budget.in_unit(least):,} {budget.unit}" if by_cost else ""
        raise ConfigError(
            [f'adapter.budget "{config.budget}" is less than one triplet for these {parts} layers{smallest}.']
        )
    return budget


def initial_rank(budget: float, widths: tuple[int, int], initial: float) -> int:
    """Rank of a layer at the first step: `initial` times the mean rank at the end, and at most its smaller width."""
    return max(1, min(math.ceil(budget * initial - 1e-9), *widths))


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
    """How much is left at the end, in parameters or triplets, whichever the budget counts."""
    unit: str
    first: int
    """How much there is at the beginning, in parameters or triplets, whichever the budget counts."""
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

    total: int
    """Parameters of the base model, with a shared weight counted once."""
    trainable: int
    adapted: tuple[PlannedLayer, ...]
    written_bytes: int
    """Numbers in the adapter's file; of AdaLoRA at most."""
    file_bytes: int | None
    file_bytes_half: int | None
    exact: bool
    """Whether the counts are exact; they are at most what is told where ranks are chosen by looking at data."""
    in_memory: int = 0
    """Numbers in float32 beside the base's own weights while it trains."""
    left: Left | None = None
    heads: Heads = field(default_factory=dict)
    """Weights that train whole beside the adapters, and are counted in the numbers above."""

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
        whole = Counter[str]()
        for name, size in self.heads.items():
            whole[name.rpartition(".")[0]] += math.prod(size)
        return {leaf: (layers[leaf], trainable[leaf]) for leaf in layers} | {path: (1, n) for path, n in whole.items()}


def numbers_of(heads: Heads) -> int:
    return sum(map(math.prod, heads.values()))


def with_ranks(
    total: int, layers: Sequence[Layer], ranks: Sequence[int], heads: Heads = NO_HEADS, *, dora: bool, exact: bool
) -> Parameters:
    """LoRA with these ranks; without layers, heads alone."""
    ranked = list(zip(layers, ranks, strict=True))
    adapted = tuple(
        PlannedLayer(
            layer, (rank,),
            max(1, layer.experts) * rank * (layer.inputs + layer.outputs) + (layer.outputs if dora else 0),
        )
        for layer, rank in ranked
    )  # fmt: skip
    trainable = sum(planned.trainable for planned in adapted) + numbers_of(heads)
    sizes = (size_of_file(ranked, heads, dora=dora, half=half) for half in (False, True))
    return Parameters(total, trainable, adapted, trainable, *sizes, exact=exact, in_memory=trainable, heads=heads)


def with_budget(
    total: int, layers: Sequence[Layer], config: BudgetSettings, initial: float, heads: Heads = NO_HEADS
) -> Parameters:
    """AdaLoRA that begins with `initial` times its budget."""
    parts = [layer.parts or (layer.outputs,) for layer in layers]
    places = [place for place, widths in enumerate(parts) for _ in widths]
    costs = [layers[place].inputs + layers[place].outputs for place in places]
    budget = budget_of(config, costs, places, [layer.path for layer in layers])
    adapted = []
    for layer, widths in zip(layers, parts, strict=True):
        ranks = tuple(initial_rank(budget.mean_rank, (layer.inputs, width), initial) for width in widths)
        held = sum(rank * (layer.inputs + width + 1) for rank, width in zip(ranks, widths, strict=True))
        adapted.append(PlannedLayer(layer, ranks, held))
    ranks = [rank for planned in adapted for rank in planned.ranks]
    left = _left(budget, costs, ranks)
    names = BYTES_OF_FILE + sum(BYTES_OF_NAMES + 2 * len(layer.path) for layer in layers)
    most = 4 * left.most + names
    if budget.in_bytes:
        most = min(most, budget.in_unit(left.amount))
    half, whole = min(most, 2 * left.most + names), numbers_of(heads)
    beside = size_of_file([], heads) - 4 * whole if heads else 0
    trainable = sum(planned.trainable for planned in adapted) + whole
    return Parameters(
        total, trainable, tuple(adapted), left.most + whole, most + beside + 4 * whole, half + beside + 2 * whole,
        exact=True, in_memory=trainable, left=left, heads=heads,
    )  # fmt: skip


def _left(budget: Budget, costs: list[int], ranks: list[int]) -> Left:
    """The cheapest and the dearest that may be left, as the ranks at the beginning allow."""
    first = sum(cost * rank for cost, rank in zip(costs, ranks, strict=True)) + sum(budget.entries)
    first = first if budget.by_cost else sum(ranks)
    last = min(budget.last, first)
    even = round(sum(cost * min(budget.mean_rank, rank) for cost, rank in zip(costs, ranks, strict=True)))
    if budget.by_cost:
        least, even, most = min(last, min(costs)), min(even, last), last
    else:
        least, most = (_spent(costs, ranks, last, dearest=dearest) for dearest in (False, True))
    return Left(
        amount=last, unit=budget.unit, first=first, in_units=(budget.in_unit(first), budget.in_unit(last)),
        mean_rank=budget.mean_rank, least=least, even=even, most=most,
    )  # fmt: skip


def _spent(costs: list[int], ranks: list[int], triplets: int, *, dearest: bool) -> int:
    """Parameters of so many triplets, of the dearest or of the cheapest."""
    spent = 0
    for cost, rank in sorted(zip(costs, ranks, strict=True), reverse=dearest):
        spent += cost * min(rank, triplets)
        triplets -= min(rank, triplets)
    return spent
