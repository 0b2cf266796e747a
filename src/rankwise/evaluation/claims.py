"""What LoRA is famous for, as questions that numbers answer: "holds", "does not hold" or "cannot tell".

    as good      loss(adapter) - loss(full) stays below MARGIN nats per token
    forgets less KL(adapter) / KL(full) stays below 1 where both have the same loss on the task
    a factor     is at least so large

Losses of several seeds on the same items are compared pair by pair. An interval of 95 % has two parts, whose squares
are added: how far seeds differ (Student's t over their own differences) and how far items do (drawn again, Efron).

At equal loss a run's KL is read off its own curve of (loss, KL) points, along the line between the two that the loss
lies between, with the root of KL, since KL grows with the square of a change. The loss is the lowest that every run of
both methods has reached. A run that learns more is so read on its way, at a higher learning rate than at its end, which
is to its disadvantage: a method that reaches less at its end looks better by this than it is.
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
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""By the number of runs; Student's, two-sided. More than ten count as ten."""


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

    def difference(sums: Table) -> Table:
        return share(sums[..., :2]) - share(sums[..., 2:])

    value = float(difference(both.sum((0, 1))))
    of_items = both.sum(0)
    generator = np.random.default_rng(0)
    counts = generator.multinomial(len(of_items), np.full(len(of_items), 1 / len(of_items)), size=RESAMPLES)
    low, high = np.quantile(difference(counts @ of_items), (0.025, 0.975))
    seeds = _spread(difference(both.sum(1)))
    return value, value - math.hypot(value - float(low), seeds), value + math.hypot(float(high) - value, seeds)


def _spread(values: Table) -> float:
    """Half of the interval of a mean over runs; none is known of a single one."""
    if len(values) < 2:
        return 0.0
    return T_95[min(len(values), 10)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def forgets_less(name: str, ours: Sequence[Curve], theirs: Sequence[Curve]) -> Claim:
    """Curves of one run for each seed, of an adapter and of what it is held against."""
    wanted = "less KL than the other at equal loss on the task"
    level = equal_loss([*ours, *theirs])
    if level is None:
        return Claim(claim=name, answer="cannot tell", n=0, wanted=wanted, why="no loss that all runs have reached")
    pairs = [(kl_at(one, level), kl_at(other, level)) for one, other in zip(ours, theirs, strict=True)]
    if len(pairs) < 2 or min(map(min, pairs)) <= 0:
        why = "one seed tells no spread" if len(pairs) < 2 else "a run has changed nothing where the losses are equal"
        return Claim(claim=name, answer="cannot tell", n=len(pairs), wanted=wanted, why=why)
    ratios = np.log([a / b for a, b in pairs])
    mean, spread = float(ratios.mean()), _spread(ratios)
    low, high = mean - spread, mean + spread
    answer: Answer = "holds" if high < 0 else "does not hold" if low > 0 else "cannot tell"
    return Claim(
        claim=name, answer=answer, value=math.exp(mean), low=math.exp(max(low, -50.0)), high=math.exp(min(high, 50.0)),
        n=len(pairs), seeds=len(pairs), wanted=wanted, why=f"at a loss of {level:.4f}",
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
            part = (loss - level) / (loss - next_loss)
            return (math.sqrt(kl) + (math.sqrt(next_kl) - math.sqrt(kl)) * part) ** 2
        loss, kl = next_loss, next_kl
    raise AssertionError("equal_loss has looked")


def not_measured(name: str, why: str) -> Claim:
    return Claim(claim=name, answer="cannot tell", n=0, wanted="a measurement", why=why)
