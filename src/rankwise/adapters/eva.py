"""EVA, Paischer et al. 2024 (arXiv 2410.07170): LoRA that starts where the data is, with ranks given out by need.

    X = U diag(S) V^T,   the inputs X (N, I) of a layer over some batches,   A = V^T[:rank],   B = 0

A direction's worth is its share of the layer's input, S_i^2 / |X|^2, and the directions of most worth in the whole
model get a rank, at most rho * rank of them in one layer and none in another, which is then left out: as many as there
can be with no more parameters than without EVA (the paper keeps the sum of ranks, which costs more where wide layers
gain). alpha / rank stays as it was for every layer. The mean is not subtracted: x is what A meets, and no bias takes
its mean away (peft subtracts it). A direction that no input has gets no rank, as it could never learn.

X is never held. A sketch of k = rho * rank rows, diag(S) V^T, stands for all rows so far: new ones are put below it and
the stack is cut down to its k leading rows, which is exact as long as X has no more than k directions. Sketches are
values: layers that saw the very same inputs have the very same sketch, and it is computed once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.base_layers import features_of, is_linear
from rankwise.adapters.targets import Choice, choose, host_view
from rankwise.config.adapters import LoraConfig
from rankwise.errors import TargetError, some
from rankwise.kernels.linear import is_conv1d

Real = Callable[[Tensor | None], None]
RunBatches = Callable[[Real], None]
"""Runs batches through the model. Before each it says which places (B, T) hold a real token; None for all of them."""

EXTRA = 16
PASSES = 2
"""How far the randomised cut goes beyond what it keeps (Halko et al. 2011)."""
ROWS_AT_ONCE = 4096
RECENT = 8
"""Inputs remembered within a batch; layers that share one are called soon after each other."""
SMALLEST = 1e-6
"""Singular values below this share of the largest one are rounding, not input."""


def eva_choices(model: nn.Module, config: LoraConfig, run_batches: RunBatches, seed: int = 0) -> list[Choice]:
    """EVA initialisation for `inject(model, spec, choices=...)`: each layer's rank, alpha and A. `run_batches` runs the
    model on some batches and calls its argument with each batch's mask of real tokens:

    def run_batches(real):
        for batch in batches:
            real(batch["attention_mask"].bool())
            model(**batch)
    """
    choices = choose(model, config)
    modules = host_view(model)
    _refuse_others({choice.path: modules[choice.path] for choice in choices})
    most = {c.path: min(round(c.rank * config.eva_rho), *features_of(modules[c.path])) for c in choices}
    watch = _Watch(max(most.values()), seed)
    hooks = [
        modules[path].register_forward_pre_hook(partial(watch.see, path), prepend=True, with_kwargs=True)
        for path in most
    ]
    try:
        with torch.no_grad(), _evaluating(model):
            run_batches(watch.real)
    finally:
        for hook in hooks:
            hook.remove()
    return _given_out(choices, watch.sketches, most, costs_of(model, choices))


def costs_of(model: nn.Module, choices: Sequence[Choice]) -> dict[str, int]:
    """Parameters of one rank of each layer."""
    modules = host_view(model)
    return {choice.path: sum(features_of(modules[choice.path])) for choice in choices}


@dataclass(frozen=True, eq=False)
class Sketch:
    """`values` (k,) and `vectors` (k, I): leading singular values and right-singular vectors of the rows so far;
    `size` is the squared norm of them all."""

    values: Tensor
    vectors: Tensor
    size: float = 0.0

    @classmethod
    def plus(cls, before: Sketch | None, rows: Tensor, most: int, seed: int) -> Sketch:
        sketch = before or cls(rows.new_zeros(0), rows.new_zeros(0, rows.shape[1]))
        for some_rows in rows.split(ROWS_AT_ONCE):
            stacked = torch.cat([sketch.values[:, None] * sketch.vectors, some_rows])
            size = sketch.size + some_rows.square().sum().item()
            if not math.isfinite(size):
                return cls(sketch.values, sketch.vectors, size)
            sketch = cls(*leading(stacked, most, seed), size)
        return sketch

    def worth(self, most: int) -> Tensor:
        """The share of each direction, largest first."""
        there = self.values > SMALLEST * self.values.max() if self.size else self.values > 0
        return self.values[there][:most].cpu().double().square() / (self.size or 1.0)


def leading(rows: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Singular values (k,) and right-singular vectors (k, I) of `rows` (N, I), the largest `most` of them. Exact where
    that is cheap, and else by subspace iteration from seeded noise, which is one small share of the cost."""
    columns = min(most + EXTRA, *rows.shape)
    if 2 * columns >= min(rows.shape):
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        return values[:most], vectors[:most]
    noise = torch.randn(columns, len(rows), generator=torch.Generator().manual_seed(seed)).to(rows)
    basis = torch.linalg.qr((noise @ rows).T).Q
    for _ in range(PASSES):
        basis = torch.linalg.qr(rows.T @ torch.linalg.qr(rows @ basis).Q).Q
    _, values, inside = torch.linalg.svd(rows @ basis, full_matrices=False)
    return values[:most], inside[:most] @ basis.T


def give_out(worth: Sequence[Tensor], costs: Sequence[int], budget: int) -> list[int]:
    """Ranks of layers whose directions are worth so much and cost so many parameters each: the best, up to the first
    that would exceed `budget` parameters. With equal worth the earlier layer gets it."""
    owner = torch.arange(len(worth)).repeat_interleave(torch.tensor([len(one) for one in worth]))
    order = owner[torch.cat(list(worth)).argsort(descending=True, stable=True)]
    within = torch.tensor(costs)[order].cumsum(0) <= budget
    return torch.bincount(order[within], minlength=len(worth)).tolist()


def _given_out(
    choices: list[Choice], sketches: dict[str, Sketch], most: dict[str, int], costs: dict[str, int]
) -> list[Choice]:
    broken = [path for path, sketch in sketches.items() if not math.isfinite(sketch.size)]
    if broken:
        raise TargetError(
            f"the inputs of {some(broken, 3)} contain NaN or infinity, so EVA cannot compute initial values from them. "
            "Try --set model.dtype=float32."
        )
    seen = [choice for choice in choices if choice.path in sketches]
    worth = [sketches[choice.path].worth(most[choice.path]) for choice in seen]
    budget = sum(choice.rank * costs[choice.path] for choice in choices)
    ranks = give_out(worth, [costs[choice.path] for choice in seen], budget) if seen else []
    if not any(ranks):
        raise TargetError(
            "the adapted layers received no inputs, or only zeros, so EVA cannot compute initial values from them. "
            'Use start "uniform".'
        )
    return [
        replace(choice, rank=rank, A=_signed(sketches[choice.path].vectors[:rank]))
        for choice, rank in zip(seen, ranks, strict=True)
        if rank
    ]


def _signed(vectors: Tensor) -> Tensor:
    """A singular vector's sign is arbitrary; here its largest number is positive."""
    return vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()


class _Watch:
    """Hooks of one look at a model: each layer's sketch, from the inputs that it is called with."""

    def __init__(self, most: int, seed: int) -> None:
        self.sketches: dict[str, Sketch] = {}
        self._most, self._seed = most, seed
        self._places: Tensor | None = None
        self._recent: deque[tuple[Tensor, int, Sketch | None, Sketch]] = deque(maxlen=RECENT)

    def real(self, places: Tensor | None) -> None:
        self._places = None if places is None or bool(places.bool().all()) else places.bool()
        self._recent.clear()

    def see(self, path: str, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x: Tensor = next(iter((*arguments, *named.values())))
        before = self.sketches.get(path)
        version = 0 if x.is_inference() else x._version  # an input changed in place is another input
        for known, known_version, known_before, after in self._recent:
            if known is x and known_version == version and known_before is before:
                self.sketches[path] = after
                return
        rows = self._rows(path, x)
        if len(rows):
            self.sketches[path] = Sketch.plus(before, rows, self._most, self._seed)
            self._recent.append((x, version, before, self.sketches[path]))

    def _rows(self, path: str, x: Tensor) -> Tensor:
        flat = x.detach().reshape(-1, x.shape[-1])
        if self._places is not None:
            as_rows = x.ndim == 2 and len(flat) == self._places.numel()
            if x.shape[:-1] != self._places.shape and not as_rows:
                raise TargetError(
                    f'"{path}" receives an input of shape {tuple(x.shape)} for a batch of shape '
                    f"{tuple(self._places.shape)}, so EVA cannot tell which of its rows are padding. "
                    'Leave it out of the targets, or use start "uniform".'
                )
            flat = flat[self._places.flatten().to(flat.device)]
        if flat.device.type == "mps":  # has no decompositions
            flat = flat.cpu()
        return flat if flat.dtype == torch.float64 else flat.float()


def _refuse_others(hosts: dict[str, nn.Module]) -> None:
    others = [
        f'"{path}" ({type(host).__name__})' for path, host in hosts.items() if not (is_linear(host) or is_conv1d(host))
    ]
    if others:
        raise TargetError(
            f'start "eva" works on linear layers and Conv1D only, but the targets include {some(others, 3)}. '
            'Leave them out of the targets, or use start "uniform".'
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
