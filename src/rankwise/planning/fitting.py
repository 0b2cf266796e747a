"""Whether a training fits, how much fits at once, and what to change where it does not: each change with its price.

A change is tried as the plan would try it: by the same arithmetic, so what is said to fit is forecast to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rankwise.planning.devices import Device
from rankwise.planning.forecast import Forecast
from rankwise.planning.memory import Job

LARGEST, STEP_OF_TOKENS = 65_536, 64
AGAIN = 4 / 3
"""Time of a step whose blocks are all computed twice: forward, forward again, and backward, which counts twice. Where
weights learn too, backward counts more and this is less."""


@dataclass(frozen=True)
class Fit:
    """`tokens` are the most that fit at once, and `tokens_recomputed` with all blocks computed twice; 0 where even the
    longest document does not fit. `recomputed` is how many blocks the asked-for job must compute twice to fit."""

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


def fit_of(made: Forecast, device: Device, longest: int) -> Fit:
    room, blocks = device.usable, made.shape.stacks[-1].count - made.job.lowest
    twice = 0 if made.peak <= room else least_recomputed(made, room, blocks)
    return Fit(
        device, made.peak, made.peak <= room, twice,
        most_at_once(made, room, longest, made.job.recomputed), most_at_once(made, room, longest, blocks),
    )  # fmt: skip


def least_recomputed(made: Forecast, room: int, blocks: int) -> int | None:
    """How many blocks must be computed twice; None where all of them do not do."""
    if blocks < 1 or _peak(made, recomputed=blocks) > room:
        return None
    low, high = 0, blocks
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _peak(made, recomputed=middle) <= room else (middle, high)
    return high


def most_at_once(made: Forecast, room: int, longest: int, recomputed: int) -> int:
    """A multiple of 64 tokens, by halving; the share that is learned stays."""
    share = made.job.learned / max(1, made.job.tokens)

    def fits(tokens: int) -> bool:
        return _peak(made, tokens=tokens, learned=round(share * tokens), recomputed=recomputed) <= room

    if not fits(longest):
        return 0
    low, high = longest, max(longest, LARGEST)
    if fits(high):
        return high
    while high - low > STEP_OF_TOKENS:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(longest, low // STEP_OF_TOKENS * STEP_OF_TOKENS)


def remedies(made: Forecast, room: int, longest: int, other: Callable[[str], Forecast | None]) -> list[Remedy]:
    """Changes after which it fits, the cheapest first. `other` forecasts the same with one setting changed,
    if that means anything there."""
    return [remedy for remedy in _tried(made, room, longest, other) if remedy.peak <= room]


def _tried(made: Forecast, room: int, longest: int, other: Callable[[str], Forecast | None]) -> Iterator[Remedy]:
    job, blocks = made.job, made.shape.stacks[-1].count - made.job.lowest
    if 0 < (tokens := most_at_once(made, room, longest, job.recomputed)) < job.tokens:
        yield Remedy(
            (f"training.micro_batch_tokens={tokens}",), _peak(made, tokens=tokens, learned=_learned(job, tokens)),
            "the same result; more and smaller pieces, which a processor computes a little slower",
        )  # fmt: skip
    twice = least_recomputed(made, room, blocks)
    if twice is not None and twice > job.recomputed:
        slower = 1 + (AGAIN - 1) * twice / blocks
        yield Remedy(
            (f"training.recomputed_blocks={twice}",), _peak(made, recomputed=twice),
            f"the same result, in about {slower:.2f} times the time",
        )  # fmt: skip
    least = most_at_once(made, room, longest, blocks)
    if 0 < least < job.tokens and twice is None:
        peak = _peak(made, tokens=least, learned=_learned(job, least), recomputed=blocks)
        price = f"the same result, in about {AGAIN:.2f} times the time"
        changes = (f"training.recomputed_blocks={blocks}", f"training.micro_batch_tokens={least}")
        yield Remedy(changes, peak, price)
    for change, price in (
        ("model.dtype=bfloat16", "numbers of 8 bits instead of 24: single steps differ by some hundredths of a nat"),
        ("adapter.method=lora", "an adapter learns instead of the whole model"),
        ("data.max_length", "longer rows are left out"),
        ("adapter.rank=4", "less room for what is learned"),
        ("adapter.budget=2", "less room for what is learned"),
    ):
        yield from _changed(made, change, price, longest, other)


def _changed(
    made: Forecast, change: str, price: str, longest: int, other: Callable[[str], Forecast | None]
) -> Iterator[Remedy]:
    method = made.job.method
    useless = {
        "model.dtype=bfloat16": method == "full" or made.job.dtype != "float32",
        "adapter.method=lora": method != "full", "data.max_length": longest <= 2 * STEP_OF_TOKENS,
        "adapter.rank=4": method != "lora", "adapter.budget=2": method != "adalora",
    }[change]  # fmt: skip
    if useless:
        return
    said = f"data.max_length={longest // 2}" if change == "data.max_length" else change
    changed = other(said)
    if changed is not None and changed.peak < made.peak:
        yield Remedy((said,), changed.peak, price)


def _learned(job: Job, tokens: int) -> int:
    return round(job.learned / max(1, job.tokens) * tokens)


def _peak(made: Forecast, **changes: int) -> int:
    return made.with_job(replace(made.job, **changes)).peak
