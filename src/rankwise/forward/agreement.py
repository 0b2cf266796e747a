"""Agreement of the fused and the eager backend, tested on the model itself before a run begins.

Both compute logits and gradients of the same random sequences, with adapters moved away from their initial values.
Backends that round differently differ by what the dtype explains, or by more where rounding adds up over the blocks
(deep models, large norms). In that case both are also computed in float32, and the fused backend is accepted if

    in float32 it equals the eager backend up to rounding, and
    in the model's own dtype it is no farther from float32 than the eager backend is, but for chance, gradients in the
    median block.

So a wrong formula is detected however much a model rounds, and the fused backend is not rejected for being more exact.
The median, since the rounding of all blocks adds up in the gradients of the first ones: there a single token can make
either backend several times as far from float32 as the other, and on other sequences it is the other way round. Values
of the adapters can do the same to all blocks, so a fused backend that is farther is judged by the median of several.

How far logits and gradients of one computation are from those of another: ||a - b|| / ||b||, of gradients also in
the median block of the model, and of several computations in the median.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import hypot, inf, isnan, nan
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.config.modules import layer_number
from rankwise.errors import ModelError, first_line, is_out_of_memory, some
from rankwise.forward.encoders import FusedEncoder
from rankwise.forward.fused import PROBED, FusedLoss, probe
from rankwise.kernels.quantized.tensor import is_quantized, unpacked
from rankwise.kernels.regions import plain_regions
from rankwise.rows.encoded.batches import IGNORED, Batch
from rankwise.system.memory import available_memory, give_back

EXACT = 2**18
"""Numbers converted to float64 at a time."""


@dataclass(frozen=True)
class Computed:
    """Logits and gradients of one backend in one dtype."""

    logits: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class Distance:
    """The relative distance ||a - b|| / ||b|| of logits and of gradients."""

    logits: float
    gradients: float

    def within(self, logits: float, gradients: float) -> bool:
        """Compare so that NaN is never within the limits."""
        return self.logits <= logits and self.gradients <= gradients

    def __str__(self) -> str:
        return f"logits by {self.logits:.2%} and gradients by {self.gradients:.2%}"


@dataclass(frozen=True)
class Roundings:
    """How far each backend is from float32 in the model's own dtype."""

    fused: Distance
    eager: Distance


def distance(value: Computed, other: Computed) -> Distance:
    return Distance(share(value.logits, other.logits), share(value.gradients, other.gradients))


def share(value: Tensor, other: Tensor) -> float:
    """Compute the relative distance part by part, since float64 copies of the logits would be the largest tensors of a
    run."""
    parts = list(zip(value.flatten().split(EXACT), other.flatten().split(EXACT), strict=True))
    apart = hypot(*((one.double() - two.double()).norm().item() for one, two in parts))
    whole = hypot(*(two.double().norm().item() for _, two in parts))
    return apart / whole if whole else 0.0 if apart == 0.0 else inf


def blocks_of(module: nn.Module, learned: Sequence[nn.Parameter]) -> list[list[slice]]:
    """Return where the gradients of each block are among all; what is in no block counts as one for each parameter."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    blocks: dict[int | str, list[slice]] = {}
    first = 0
    for parameter in learned:
        name = names.get(id(parameter), "")
        number, last = layer_number(name), first + parameter.numel()
        blocks.setdefault(name if number is None else number, []).append(slice(first, last))
        first = last
    return list(blocks.values())


def typical_distance(value: Computed, other: Computed, blocks: list[list[slice]]) -> Distance:
    """Return the distance of gradients in the median block."""
    shares = [
        share(*(torch.cat([one.gradients[part] for part in parts]) for one in (value, other))) for parts in blocks
    ]
    return Distance(share(value.logits, other.logits), _median(shares or [0.0]))


def middle(distances: Sequence[Distance]) -> Distance:
    """Return the median of logits and the median of gradients."""
    return Distance(*(_median([getattr(one, name) for one in distances]) for name in ("logits", "gradients")))


def _median(values: list[float]) -> float:
    """NaN if one is NaN."""
    return nan if any(map(isnan, values)) else median(values)


NOISE = 0.02
ROOM = 1.25
"""Free memory needed for a float32 copy of the weights, relative to the size of the copy."""

LOGITS = 2**23
"""Largest number of logits to compare; with a large vocabulary fewer positions are compared."""
LEAST_POSITIONS = 16
DRAWS = 5
"""Comparisons, each with other values of what is trained, before a backend that is farther from float32 is refused."""
CHANCE = 1.25
"""How much farther a backend may be that rounds no worse. In bfloat16, the logits of tiny models of three families were
0.82 to 1.22 times as far from float32 in one backend as in the other, in either direction."""

Logits = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Agreement:
    """`why` says how far the backends differ, or what prevented the comparison."""

    agrees: bool
    why: str
    failed: bool = False
    """The fused backend raised an error."""


def agreement(module: nn.Module, learned: Sequence[nn.Parameter], plain: Logits) -> Agreement:
    """Compare the fused backend of decoders with the eager one, `plain`, which maps a batch to logits."""
    batch = _at_fewer_positions(module, probe(module, PROBED, generator := torch.Generator().manual_seed(0)))
    usual, fast = partial(_by_plain, plain, batch, learned), partial(_by_kernels, module, batch, learned)
    return compared(module, learned, usual, fast, generator)


def encoder_agreement(module: nn.Module, learned: Sequence[nn.Parameter], plain: Logits, batch: Batch) -> Agreement:
    """Compare the fused backend of encoders with the eager one on this batch."""

    def fast() -> Computed:
        with FusedEncoder(module, plain).active():
            return _by_plain(plain, batch, learned)

    return compared(module, learned, partial(_by_plain, plain, batch, learned), fast, torch.Generator().manual_seed(0))


def compared(
    module: nn.Module, learned: Sequence[nn.Parameter], usual: Callable[[], Computed], fast: Callable[[], Computed],
    generator: torch.Generator,
) -> Agreement:  # fmt: skip
    """Compare two ways to compute. Refuse a model whose weights are not finite."""
    with moved(learned, generator):
        try:
            eager = usual()
            fused = fast()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return Agreement(False, f"the fused backend fails ({first_line(error)})", failed=True)
        if not eager.logits.isfinite().all():
            check_finite(module)
        give_back()  # what both passes left behind would count as used
        judged = _judged(module, learned, fused, eager, fast, usual)
    if isinstance(judged, Agreement):
        return judged
    rounded = [judged]
    while not (verdict := _nearer(module, rounded)).agrees and len(rounded) < DRAWS:
        for _ in range(2):  # an odd number of draws has a median
            with moved(learned, generator):
                rounded.append(_roundings(module, learned, fast(), usual(), _exact(module, usual)))
    return verdict


def agrees(module: nn.Module, learned: Sequence[nn.Parameter], plain: Logits) -> bool:
    return agreement(module, learned, plain).agrees


def _at_fewer_positions(module: nn.Module, batch: Batch) -> Batch:
    """Leave losses only on as many tokens as LOGITS allows, spread over all sequences; the model still reads every
    token."""
    model: Any = module
    most = max(LEAST_POSITIONS, LOGITS // model.get_output_embeddings().weight.shape[0])
    if most >= batch.tokens:
        return batch
    chosen = torch.linspace(0, batch.tokens - 1, most).round().long()
    targets = torch.full_like(batch.targets, IGNORED)
    targets[0, chosen] = batch.targets[0, chosen]
    return replace(batch, targets=targets, count=int((targets != IGNORED).sum()))


def _judged(
    module: nn.Module, learned: Sequence[nn.Parameter], fast: Computed, usual: Computed,
    by_kernels: Callable[[], Computed], by_plain: Callable[[], Computed],
) -> Agreement | Roundings:  # fmt: skip
    """Judge by how far the backends are from each other, and by both in float32; where neither decides, return how far
    each is from float32."""
    dtype = next(module.parameters()).dtype
    apart, limits, name = distance(fast, usual), _limits(dtype), str(dtype).removeprefix("torch.")
    outcome = f"in {name}, the fused and the eager backend differ in {apart}"
    if apart.within(*limits):
        return Agreement(True, outcome)
    outcome += f"; rounding explains at most {limits[0]:.2%} and {limits[1]:.2%}"
    if not _short(module):
        return Agreement(False, outcome)
    needed, free = _bytes_in_float32(module), available_memory()
    if ROOM * needed > free:
        return Agreement(
            False, f"{outcome}; comparing both in float32 needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free"
        )
    exact_usual, exact_fast = _exact(module, by_plain), _exact(module, by_kernels)
    exactly = distance(exact_fast, exact_usual)
    if not exactly.within(*_limits(torch.float32)):
        return Agreement(False, f"{outcome}, and in float32 they differ too: {exactly}")
    return _roundings(module, learned, fast, usual, exact_usual)


def _exact(module: nn.Module, compute: Callable[[], Computed]) -> Computed:
    with _in_float32(module), plain_regions():
        return compute()


def _roundings(
    module: nn.Module, learned: Sequence[nn.Parameter], fast: Computed, usual: Computed, exact: Computed
) -> Roundings:
    blocks = blocks_of(module, learned)
    return Roundings(*(typical_distance(one, exact, blocks) for one in (fast, usual)))


def _nearer(module: nn.Module, rounded: Sequence[Roundings]) -> Agreement:
    """Accept a fused backend that is no farther from float32 than rounding explains, or than the eager one and chance
    explain."""
    dtype = next(module.parameters()).dtype
    limits, name = _limits(dtype), str(dtype).removeprefix("torch.")
    ours, theirs = (middle([getattr(one, backend) for one in rounded]) for backend in ("fused", "eager"))
    drawn = "" if len(rounded) == 1 else f" and in the median of {len(rounded)} comparisons"
    return Agreement(
        ours.within(max(limits[0], CHANCE * theirs.logits), max(limits[1], CHANCE * theirs.gradients)),
        f"in {name}, the fused backend differs from float32 in {ours} in the median block{drawn}, and the "
        f"eager backend in {theirs}",
    )


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """Return what rounding alone explains in a model of usual depth, for logits and for gradients."""
    rounding = torch.finfo(dtype).eps
    return max(1e-4, 3 * rounding), max(1e-3, 48 * rounding)


@contextmanager
def moved(learned: Sequence[nn.Parameter], generator: torch.Generator) -> Iterator[None]:
    """Add noise to trainable parameters inside the block, since those that start at zero would hide differences."""
    before = [parameter.detach().clone() for parameter in learned]
    try:
        with torch.no_grad():
            for parameter in learned:
                parameter += NOISE * torch.randn(parameter.shape, generator=generator).to(parameter)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(learned, before, strict=True):
                parameter.copy_(value)


def _by_plain(plain: Logits, batch: Batch, learned: Sequence[nn.Parameter]) -> Computed:
    logits = plain(batch)
    targets = batch.targets[batch.loss_mask]
    classes = not batch.targets.dtype.is_floating_point
    loss = F.cross_entropy(logits.float(), targets, reduction="sum") if classes else logits.float().square().sum()
    return Computed(logits.detach(), gradients_of(loss, learned))


def _by_kernels(module: nn.Module, batch: Batch, learned: Sequence[nn.Parameter]) -> Computed:
    loss, hidden = FusedLoss(module).with_hidden(batch)
    with torch.no_grad():
        logits = module.get_output_embeddings()(hidden)  # pyright: ignore[reportCallIssue]
    return Computed(logits, gradients_of(loss, learned))


def gradients_of(total: Tensor, learned: Sequence[nn.Parameter]) -> Tensor:
    """Concatenate the gradients of all trainable parameters; empty if there are none."""
    gradients = torch.autograd.grad(total, list(learned), allow_unused=True) if learned else ()
    pairs = zip(learned, gradients, strict=True)
    flat = [(torch.zeros_like(one) if grad is None else grad).flatten() for one, grad in pairs]
    return torch.cat(flat) if flat else torch.zeros(0)


def _short(module: nn.Module) -> list[Tensor]:
    """List the 16-bit weights and buffers of the model, each once."""
    every = {id(one): one for one in (*module.parameters(), *module.buffers())}.values()
    return [one for one in every if one.dtype in (torch.bfloat16, torch.float16)]


def _bytes_in_float32(module: nn.Module) -> int:
    """A weight in fewer bits is stored once, whatever it is unpacked to."""
    return sum(4 * one.numel() for one in _short(module) if not is_quantized(one))


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """Hold the model in float32 inside the block; afterwards the original tensors return, without being rounded
    again."""
    short = _short(module)
    before = [one.data for one in short]
    try:
        for one in short:
            one.data = one.data.float()
        yield
    finally:
        for one, data in zip(short, before, strict=True):
            one.data = data
        give_back()


def check_finite(module: nn.Module, kind: type[nn.Module] = nn.Module, *, quantized: bool = True) -> None:
    """Refuse weights that are not finite, in modules of one kind; those in fewer bits, which take long, where asked."""
    owners = {path for path, owner in module.named_modules() if isinstance(owner, kind)}
    named = [one for one in module.named_parameters() if one[0].rpartition(".")[0] in owners]
    named = [one for one in named if quantized or not is_quantized(one[1])]
    spoiled = [name for name, value in named if not unpacked(value).isfinite().all()]
    if spoiled:
        raise ModelError(
            f"weights of the model are NaN or infinite: {some(spoiled, 3)}. Training on them is impossible; "
            "download or convert the model again."
        )
