"""What LoRA is famous for, as questions that numbers answer: "holds", "does not hold" or "cannot tell".

    as good      loss(adapter) - loss(full) stays below MARGIN nats per token
    forgets less KL(adapter) / KL(full) stays below 1 where both have the same loss on the task
    a factor     is at least so large

An interval of 95 % has two parts, whose squares are added: how far seeds differ (Student's t over their own pairs) and
how far what they were measured on does: items of the task and blocks of the text, drawn again (Efron). One seed tells
no spread, and a task from which full fine-tuning gains less than MARGIN tells no methods apart.

At equal loss a run's KL is read off its own curve of (loss, KL) points, along the line between the two that the loss
lies between, with the root of KL, since KL grows with the square of a change. The loss is the lowest that every run of
both methods has reached. A run that learns more is so read on its way, at a higher learning rate than at its end, which
is to its disadvantage. And KL at equal loss depends on the rate more than on the method: where a rate that chooses as
well as the best one would turn the answer, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from claims_records import Answer, CellResult, Claim
from numpy.typing import NDArray

from rankwise.evaluation.metrics import share

Table = NDArray[np.float64]
Curve = Sequence[tuple[float, float]]
"""(loss, KL) of one run, from the base on."""
MARGIN = 0.02
"""Nats per token: the perplexity of one is 2 % above the other's."""
RESAMPLES, FEWER = 2000, 500
ALL_BUT_FEW = 0.975
"""Of the draws, those that must have a loss that all runs reach: the rest would be left out of the interval."""
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""By the number of runs; Student's, two-sided. More than ten count as ten."""
AT_ITS_END = "the one that learned more is read on its way, which is to its disadvantage"


def factor(name: str, value: float, wanted: float, why: str | None = None) -> Claim:
    answer: Answer = "holds" if value >= wanted else "does not hold"
    return Claim(claim=name, answer=answer, value=value, n=1, wanted=f"at least {wanted:g} times", why=why)


def as_good(name: str, ours: Table, theirs: Table, base: Table) -> Claim:
    """Tables (seeds, items, 2) of nats and tokens: of a method, of what it is held against, and of no training."""
    value, low, high = paired(ours, theirs)
    answer: Answer = "holds" if high < MARGIN else "does not hold" if low > MARGIN else "cannot tell"
    why = None
    if len(ours) < 2:
        answer, why = "cannot tell", "one seed tells no spread"
    elif paired(np.broadcast_to(base, theirs.shape), theirs)[1] <= MARGIN:
        answer, why = "cannot tell", f"the other is not surely {MARGIN:g} better than no training"
    return Claim(
        claim=name, answer=answer, value=value, low=low, high=high, n=ours.shape[1], seeds=ours.shape[0], why=why,
        wanted=f"a difference of loss below {MARGIN:g} nats per token",
    )  # fmt: skip


def improved(name: str, ours: Table, base: Table) -> Claim:
    """That a model is better than its base, which has one seed."""
    value, low, high = paired(ours, np.broadcast_to(base, ours.shape))
    answer: Answer = "holds" if high < 0 else "does not hold" if low > 0 else "cannot tell"
    why = None if len(ours) > 1 else "one seed tells no spread"
    return Claim(
        claim=name, answer=answer if why is None else "cannot tell", value=value, low=low, high=high, n=ours.shape[1],
        wanted="a loss below the base's", seeds=ours.shape[0], why=why,
    )  # fmt: skip


def paired(ours: Table, theirs: Table) -> tuple[float, float, float]:
    """Ours minus theirs, in nats per token, with its interval."""
    both = np.concatenate((ours, theirs), -1)

    def difference(sums: Table) -> Table:
        return share(sums[..., :2]) - share(sums[..., 2:])

    value = float(difference(both.sum((0, 1))))
    of_items = both.sum(0)
    drawn = difference(_counts(len(of_items), RESAMPLES, 0) @ of_items)
    return _interval(value, drawn, _spread(difference(both.sum(1))))


def forgets_less(
    name: str, ours: Sequence[CellResult], theirs: Sequence[CellResult],
    as_well: tuple[Sequence[CellResult], Sequence[CellResult]] = ((), ()),
) -> Claim:  # fmt: skip
    """One run for each seed, of an adapter and of what it is held against; and of both, runs at other rates that no
    loss tells from the best one's, with the first seed."""
    wanted = "less KL than the other at equal loss on the task"
    ratio, why = _ratio(ours, theirs), None
    if ratio is None:
        why = "no loss that all runs have reached, with a change of the text in all"
    elif len(ours) < 2:
        why = "one seed tells no spread"
    if why is not None or ratio is None:
        return Claim(claim=name, answer="cannot tell", n=len(ours), wanted=wanted, why=why)
    ratios, level = ratio
    drawn = _drawn_ratios(ours, theirs)
    if len(drawn) < ALL_BUT_FEW * FEWER:
        why = f"a run is not surely below its base: so it is in {len(drawn)} of {FEWER} draws of items and blocks"
        return Claim(claim=name, answer="cannot tell", n=len(ours[0].rows), seeds=len(ours), wanted=wanted, why=why)
    mean, low, high = _interval(float(ratios.mean()), drawn, _spread(ratios))
    answer: Answer = "holds" if high < 0 else "does not hold" if low > 0 else "cannot tell"
    why = f"at a loss of {level:.4f}; {AT_ITS_END}"
    others = [found[0][0] for one, other in product([ours[0], *as_well[0]], [theirs[0], *as_well[1]])
              if (found := _ratio([one], [other])) is not None]  # fmt: skip
    if answer != "cannot tell" and any((other < 0) != (mean < 0) for other in others):
        answer = "cannot tell"
        why += f"; at rates that are as good it is {math.exp(min(others)):.3g} to {math.exp(max(others)):.3g}"
    return Claim(
        claim=name, answer=answer, value=math.exp(mean), low=math.exp(max(low, -50.0)), high=math.exp(min(high, 50.0)),
        n=len(ours[0].rows), seeds=len(ours), wanted=wanted, why=why,
    )  # fmt: skip


def as_well_as(best: CellResult, other: CellResult) -> bool:
    """Whether the rows by which a rate is chosen do not tell the other from the best."""
    if other.failed is not None:
        return False
    _, low, _ = paired(np.array([other.choosing]), np.array([best.choosing]))
    return low <= 0


def _interval(value: float, drawn: Table, seeds: float) -> tuple[float, float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    low, high = min(float(low), value), max(float(high), value)
    return value, value - math.hypot(value - low, seeds), value + math.hypot(high - value, seeds)


def _counts(n: int, times: int, seed: int) -> Table:
    """How often each of n is there when n are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=times).astype(np.float64)


def _spread(values: Table) -> float:
    """Half of the interval of a mean over runs; none is known of a single one."""
    if len(values) < 2:
        return 0.0
    return T_95[min(len(values), 10)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _ratio(ours: Sequence[CellResult], theirs: Sequence[CellResult]) -> tuple[Table, float] | None:
    """Logarithms of KL over KL, seed by seed, and the loss at which they are taken."""
    return _ratio_of([curve(run) for run in ours], [curve(run) for run in theirs])


def _ratio_of(ours: Sequence[Curve], theirs: Sequence[Curve]) -> tuple[Table, float] | None:
    level = equal_loss([*ours, *theirs])
    if level is None:
        return None
    pairs = [(kl_at(one, level), kl_at(other, level)) for one, other in zip(ours, theirs, strict=True)]
    return (np.log([a / b for a, b in pairs]), level) if min(map(min, pairs)) > 0 else None


def _drawn_ratios(ours: Sequence[CellResult], theirs: Sequence[CellResult]) -> Table:
    """The mean of the logarithms with items and blocks drawn again, the same ones for all runs."""
    point = ours[0].points[0]
    items, blocks = (_counts(len(rows), FEWER, seed) for seed, rows in enumerate((point.rows, point.blocks)))
    ours_drawn, theirs_drawn = ([_curves(run, items, blocks) for run in runs] for runs in (ours, theirs))
    found = (
        _ratio_of([run[at] for run in ours_drawn], [run[at] for run in theirs_drawn]) for at in range(FEWER)
    )  # fmt: skip
    return np.array([float(ratio[0].mean()) for ratio in found if ratio is not None])


def _curves(run: CellResult, items: Table, blocks: Table) -> list[Curve]:
    points = [point for point in run.points if point.whole]
    losses, kls = (
        np.stack([share(counts @ np.array(sums)) for sums in each], -1)
        for counts, each in ((items, [point.rows for point in points]), (blocks, [point.blocks for point in points]))
    )
    return [list(zip(loss, kl, strict=True)) for loss, kl in zip(losses.tolist(), kls.tolist(), strict=True)]


def curve(run: CellResult) -> Curve:
    """Without what AdaLoRA was above its budget."""
    return [(point.loss, point.kl) for point in run.points if point.whole]


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
            before, after = math.sqrt(max(0.0, kl)), math.sqrt(max(0.0, next_kl))  # rounding may leave it below
            return (before + (after - before) * part) ** 2
        loss, kl = next_loss, next_kl
    raise AssertionError("equal_loss has looked")


def not_measured(name: str, why: str) -> Claim:
    return Claim(claim=name, answer="cannot tell", n=0, wanted="a measurement", why=why)
