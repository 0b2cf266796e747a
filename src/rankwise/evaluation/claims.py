"""What LoRA is famous for, as questions that numbers answer: "holds", "does not hold" or "cannot tell".

    as good      loss(adapter) - loss(full) stays below MARGIN nats per token
    forgets less KL(adapter) / KL(full) stays below 1 where both have the same loss on the task
    a factor     is at least so large

Losses of several seeds on the same items are compared pair by pair, with intervals of 95 % that draw both seeds and
items again. At equal loss a run's KL is read off its own curve of (loss, KL) points, along the straight line between
the two that the loss lies between; the loss is the lowest that every run of both methods has reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankwise.evaluation.metrics import share
from rankwise.run.claims import Answer, Claim

Table = NDArray[np.float64]
Curve = Sequence[tuple[float, float]]
"""(loss, KL) of one run, from the base on."""
MARGIN = 0.02
"""Nats per token: the perplexity of one is 2 % above the other's."""
RESAMPLES = 2000
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""By the number of runs; Student's, two-sided."""


def factor(name: str, value: float, wanted: float, unit: str = "times") -> Claim:
    answer: Answer = "holds" if value >= wanted else "does not hold"
    return Claim(
        claim=name, answer=answer, value=value, low=value, high=value, n=1, wanted=f"at least {wanted:g} {unit}"
    )


def as_good(name: str, ours: Table, theirs: Table) -> Claim:
    """Tables (seeds, items, 2) of nats and tokens: of an adapter, and of what it is held against."""
    value, low, high = paired(ours, theirs)
    answer: Answer = "holds" if high < MARGIN else "does not hold" if low > MARGIN else "cannot tell"
    return Claim(
        claim=name, answer=answer, value=value, low=low, high=high, n=ours.shape[1],
        wanted=f"a difference of loss below {MARGIN:g} nats per token", seeds=ours.shape[0],
    )  # fmt: skip


def improved(name: str, ours: Table, base: Table) -> Claim:
    """That a model is better than its base, which has one seed."""
    value, low, high = paired(ours, np.broadcast_to(base, ours.shape))
    answer: Answer = "holds" if high < 0 else "does not hold" if low > 0 else "cannot tell"
    return Claim(
        claim=name, answer=answer, value=value, low=low, high=high, n=ours.shape[1], wanted="a loss below the base's",
        seeds=ours.shape[0],
    )  # fmt: skip


def paired(ours: Table, theirs: Table) -> tuple[float, float, float]:
    """Ours minus theirs, in nats per token, with its interval."""
    both = np.concatenate((ours, theirs), -1)
    seeds, items, _ = both.shape
    generator = np.random.default_rng(0)

    def difference(sums: Table) -> Table:
        return share(sums[..., :2]) - share(sums[..., 2:])

    drawn = []
    for _ in range(RESAMPLES):
        chosen = both[generator.integers(0, seeds, seeds)][:, generator.integers(0, items, items)]
        drawn.append(chosen.sum((0, 1)))
    low, high = np.quantile(difference(np.array(drawn)), (0.025, 0.975))
    value = float(difference(both.sum((0, 1))))
    return value, min(value, float(low)), max(value, float(high))


def forgets_less(name: str, ours: Sequence[Curve], theirs: Sequence[Curve]) -> Claim:
    """Curves of one run for each seed, of an adapter and of what it is held against."""
    wanted = "less KL than the other at equal loss on the task"
    level = equal_loss([*ours, *theirs])
    if level is None:
        return Claim(claim=name, answer="cannot tell", n=0, wanted=wanted, why="no loss that all runs have reached")
    pairs = [(kl_at(one, level), kl_at(other, level)) for one, other in zip(ours, theirs, strict=True)]
    ratios = [math.log(a / b) for a, b in pairs if a > 0 and b > 0]
    if len(ratios) < 2:
        return Claim(
            claim=name, answer="cannot tell", value=math.exp(ratios[0]) if ratios else None, n=len(ratios),
            wanted=wanted, why="one seed tells no spread",
        )  # fmt: skip
    mean = sum(ratios) / len(ratios)
    spread = np.std(ratios, ddof=1) / math.sqrt(len(ratios)) * T_95[len(ratios)]
    low, high = mean - spread, mean + spread
    answer: Answer = "holds" if high < 0 else "does not hold" if low > 0 else "cannot tell"
    return Claim(
        claim=name, answer=answer, value=math.exp(mean), low=math.exp(low), high=math.exp(min(high, 50.0)),
        n=len(ratios), seeds=len(ratios), wanted=wanted, why=f"at a loss of {level:.4f}",
    )  # fmt: skip


def equal_loss(curves: Sequence[Curve]) -> float | None:
    """The lowest loss that every run has reached; None where one has not come below its base."""
    level = max(min(loss for loss, _ in curve) for curve in curves)
    return level if all(level < curve[0][0] for curve in curves) else None


def kl_at(curve: Curve, level: float) -> float:
    """When a run first has this loss."""
    (loss, kl), *rest = curve
    for next_loss, next_kl in rest:
        if next_loss <= level:
            return kl + (next_kl - kl) * (loss - level) / (loss - next_loss)
        loss, kl = next_loss, next_kl
    raise AssertionError("equal_loss has looked")
