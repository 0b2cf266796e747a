"""Whether a training fits, how much fits at once, and what to change where it does not: each change with its price.

A change is tried as the plan would try it, by the same arithmetic, so what is said to fit is forecast to fit; and its
price in time is the operations after it over those before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rankwise.planning.batches import AtOnce
from rankwise.planning.devices import Device
from rankwise.planning.forecast import Forecast

LARGEST, STEP_OF_TOKENS = 65_536, 64
SMALLER = "a smaller adapter can learn less"
SAME, SAME_IN_PARTS = "the same result", "the same result, in more micro-batches"
LEFT_IN_FILE = "the same result but for rounding; weights stay in their file and are read from it at each use"


@dataclass(frozen=True)
class Fit:
    """`tokens` are the most that fit at once, and `tokens_recomputed` with all blocks computed twice; 0 where even the
    longest document does not fit. `recomputed` is how many blocks must be computed twice to fit, None where all do not
    do."""

    device: Device
    peak: int
    fits: bool
    recomputed: int | None
    tokens: int
    tokens_recomputed: int


@dataclass(frozen=True)
class Remedy:
    changes: tuple[str, ...]
    """Each as `--set` takes it."""
    peak: int
    price: str

    @property
    def settings(self) -> str:
        return " ".join(f"--set {change}" for change in self.changes)


@dataclass(frozen=True)
class Changes:
    """What can be asked of a plan when it is to be changed. `other` forecasts it with settings otherwise, None where
    that means nothing there; `seconds` are those of a step, or its operations where no speed is known; `auto` says that
    blocks are computed twice as far as memory makes it necessary, unasked."""

    amount: AtOnce
    other: Callable[..., Forecast | None]
    seconds: Callable[[Forecast], float]
    auto: bool


def fit_of(forecast: Forecast, device: Device, amount: AtOnce) -> Fit:
    room, blocks = device.usable, forecast.blocks
    twice = forecast.job.recomputed if forecast.needed <= room else forecast.least_recomputed(room)
    return Fit(
        device, forecast.needed, forecast.needed <= room, twice,
        most_at_once(forecast, room, amount, forecast.job.recomputed), most_at_once(forecast, room, amount, blocks),
    )  # fmt: skip


def most_at_once(forecast: Forecast, room: int, amount: AtOnce, recomputed: int) -> int:
    """A multiple of 64 tokens, by halving."""
    longest = amount.longest

    def fits(tokens: int) -> bool:
        changed = forecast.changed(tokens=tokens, learned=amount.learned_of(tokens), recomputed=recomputed)
        return changed.needed <= room

    if not fits(longest):
        return 0
    low, high = longest, max(longest, LARGEST)
    if fits(high):
        return high
    while high - low > STEP_OF_TOKENS:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(longest, low // STEP_OF_TOKENS * STEP_OF_TOKENS)


def remedies(forecast: Forecast, room: int, changes: Changes) -> list[Remedy]:
    """Changes after which it fits, the cheapest first."""
    return [remedy for remedy in _tried(forecast, room, changes) if remedy.peak <= room]


def savings(forecast: Forecast, changes: Changes) -> list[Remedy]:
    """Changes after which it takes less memory, whether or not that is necessary."""
    return [*_in_fewer_bits(forecast, changes), *_smaller(forecast, changes)]


def _smaller(forecast: Forecast, changes: Changes) -> Iterator[Remedy]:
    blocks, tokens = forecast.blocks, max(changes.amount.longest, forecast.job.tokens // 2)
    yield from _with(forecast, changes, (f"training.activation_checkpointing={blocks}",), SAME)
    yield from _with(forecast, changes, (f"training.max_batch_tokens={tokens}",), SAME_IN_PARTS)


def _in_fewer_bits(forecast: Forecast, changes: Changes) -> Iterator[Remedy]:
    for name, price in forecast.job.method.fewer_bits.items():
        yield from _with(forecast, changes, (f"model.quantize={name}",), price)


def _tried(forecast: Forecast, room: int, changes: Changes) -> Iterator[Remedy]:
    job, blocks, amount = forecast.job, forecast.blocks, changes.amount
    if 0 < (tokens := most_at_once(forecast, room, amount, job.recomputed)) < job.tokens:
        yield from _with(forecast, changes, (f"training.max_batch_tokens={tokens}",), SAME_IN_PARTS)
    twice = forecast.least_recomputed(room)
    if twice is not None and twice > job.recomputed and not changes.auto:
        yield from _with(forecast, changes, (f"training.activation_checkpointing={twice}",), SAME)
    if twice is None and 0 < (least := most_at_once(forecast, room, amount, blocks)) < job.tokens:
        settings = (f"training.activation_checkpointing={blocks}", f"training.max_batch_tokens={least}")
        yield from _with(forecast, changes, settings, SAME_IN_PARTS)
    yield from _in_file(forecast, room, changes)
    yield from _others(forecast, changes)


def _in_file(forecast: Forecast, room: int, changes: Changes) -> Iterator[Remedy]:
    """The base's weights are left in their file, which takes no less where they learn."""
    tenths = room // 10**8
    if tenths > 0:
        yield from _with(forecast, changes, (f"model.memory={tenths / 10:.1f}GB",), LEFT_IN_FILE)


def _others(forecast: Forecast, changes: Changes) -> Iterator[Remedy]:
    spec, longest = forecast.job.method, changes.amount.longest
    yield from _in_fewer_bits(forecast, changes)
    if forecast.job.dtype == "float32":
        setting, price = spec.lighter_base
        yield from _with(forecast, changes, (setting,), price)
    if longest > 2 * STEP_OF_TOKENS:
        price = "data.too_long says whether longer rows are left out or shortened"
        yield from _with(forecast, changes, (f"data.max_length={longest // 2}",), price)
    for setting in spec.smaller if spec.start_from is None else ():
        yield from _with(forecast, changes, (setting,), SMALLER)


def _with(forecast: Forecast, changes: Changes, settings: tuple[str, ...], price: str) -> Iterator[Remedy]:
    changed = changes.other(*settings)
    if changed is None or changed.needed >= forecast.needed:
        return
    slower = changes.seconds(changed) / changes.seconds(forecast)
    yield Remedy(
        settings, changed.needed, price + (f"; takes about {slower:.2f} times as long" if slower > 1.02 else "")
    )
