"""A claim holds only where numbers say so, on data of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from claims_answers import (
    as_good,
    as_well_as,
    curve,
    equal_loss,
    factor,
    forgets_less,
    improved,
    kl_at,
    paired,
)
from claims_records import CellResult, Point
from hypothesis import given, settings
from hypothesis import strategies as st

BASE = 0.5
"""By how much no training is worse."""


def runs(shift=0.0, seeds=3, items=60, noise=0.02, seed=0):
    """Of items with losses of their own, which every run shares but for noise."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(10, 60, items).astype(float)
    loss = generator.gamma(9, 0.15, items)
    noises = np.random.default_rng(seed + 1 + int(abs(shift) * 1000)).normal(0, noise, (seeds, items))
    return np.stack((tokens * (loss + shift + noises), np.broadcast_to(tokens, (seeds, items))), -1)


@pytest.mark.parametrize(("shift", "answer"), [(0.0, "holds"), (-0.1, "holds"), (0.1, "does not hold")])
def test_as_good_is_within_the_margin(shift, answer):
    found = as_good("c", runs(shift), runs(), runs(BASE, seeds=1))
    assert found.answer == answer
    assert found.low <= shift <= found.high


def test_what_noise_hides_cannot_be_told():
    noisy = {"noise": 0.5, "items": 10}
    assert as_good("c", runs(0.02, **noisy), runs(**noisy), runs(BASE, seeds=1, items=10)).answer == "cannot tell"


def test_a_task_from_which_nobody_learned_tells_no_methods_apart():
    base = runs(0.01, seeds=1)
    found = as_good("c", np.broadcast_to(base, runs().shape), runs(), base)
    assert found.answer == "cannot tell" and "no training" in found.why


def test_one_seed_tells_no_spread():
    assert as_good("c", runs(seeds=1), runs(seeds=1), runs(BASE, seeds=1)).why == "one seed tells no spread"
    assert improved("c", runs(-0.2, seeds=1), runs(seeds=1)).answer == "cannot tell"


def test_a_method_beside_itself_does_not_differ():
    assert paired(runs(), runs()) == (0.0, 0.0, 0.0)


def test_improvement_is_over_a_base_of_one_run():
    base = runs(seeds=1)
    assert improved("c", runs(-0.2), base).answer == "holds"
    assert improved("c", runs(0.2), base).answer == "does not hold"


def run(rate, floor=1.0, noise=0.0, seed=0, choosing=0.0):
    """One that forgets `rate` for each squared nat it gains; items and blocks differ by `noise` from each other."""
    generator = np.random.default_rng(seed)
    items, blocks = (np.exp(generator.normal(0, noise, 20)) for _ in range(2))
    items, blocks = items / items.mean(), blocks / blocks.mean()
    points = [
        Point(step=step, rows=[[10 * (2.0 - gain) * one, 10.0] for one in items],
              blocks=[[100 * rate * gain**2 * one, 100.0] for one in blocks])
        for step, gain in enumerate(np.linspace(0, 2.0 - floor, 4))
    ]  # fmt: skip
    rows = [[10 * (1.0 + choosing) * one, 10.0] for one in items]
    return CellResult(points=points, choosing=rows, outside=[], seconds=1.0)


def test_intervals_hold_the_truth_where_seeds_differ_most():
    """Three seeds that differ as seeds do: of 200 intervals of 95 %, fewer than 180 held would be a bug."""
    generator, held = np.random.default_rng(5), 0
    for _ in range(200):
        shifts = generator.normal(0, 0.05, 3)
        ours = np.concatenate([runs(shift, seeds=1, noise=0.01) for shift in shifts])
        _, low, high = paired(ours, np.concatenate([runs(0.0, seeds=1, noise=0.01)] * 3))
        held += low <= 0 <= high
    assert held >= 180


@pytest.mark.parametrize(("rate", "answer"), [(0.5, "holds"), (2.0, "does not hold"), (1.0, "cannot tell")])
def test_forgetting_is_compared_at_equal_loss(rate, answer):
    """The one that learned least must not win by that."""
    ours = [run(rate * factor, floor=1.5) for factor in (0.98, 1.0, 1.03)]
    theirs = [run(factor, floor=0.9) for factor in (1.01, 1.0, 0.98)]
    found = forgets_less("c", ours, theirs)
    assert found.answer == answer
    assert found.value == pytest.approx(rate, rel=0.05) and found.low <= rate <= found.high
    assert equal_loss([curve(one) for one in (*ours, *theirs)]) == pytest.approx(1.5)


def test_blocks_that_differ_from_each_other_widen_the_interval():
    """Seeds that agree to the last place say nothing of another text."""

    def width(ours):
        found = forgets_less("c", ours, [run(factor, seed=9) for factor in (1.01, 1.0, 0.99)])
        return found.high - found.low

    alike, unlike = ([run(0.8 * factor, noise=noise) for factor in (0.99, 1.0, 1.01)] for noise in (0.0, 0.6))
    assert width(unlike) > 2 * width(alike)


def test_draws_without_an_equal_loss_are_not_left_out_in_silence():
    """A run that is hardly below its base is above it in many draws, and only the others were counted."""
    ours = [run(rate, floor=1.99, noise=0.0) for rate in (3.0, 3.01, 2.99)]
    theirs = [run(1.0, floor=1.0)] * 3
    assert forgets_less("c", ours, theirs).answer == "does not hold"
    shaken = []
    for one in ours:
        first, *rest = one.points
        moved = [point.model_copy(update={"rows": [[nats + apart, tokens] for (nats, tokens), apart
                                                   in zip(point.rows, [4.0, -4.0] * 10, strict=True)]})
                 for point in rest]  # fmt: skip
        shaken.append(one.model_copy(update={"points": [first, *moved]}))
    found = forgets_less("c", shaken, theirs)
    assert found.answer == "cannot tell" and "not surely below its base" in found.why


def test_a_rate_that_is_as_good_and_turns_the_answer_leaves_none():
    ours, theirs = ([run(rate * factor) for factor in (0.98, 1.0, 1.03)] for rate in (0.5, 1.0))
    assert forgets_less("c", ours, theirs).answer == "holds"
    assert forgets_less("c", ours, theirs, ([run(0.7)], [run(1.2)])).answer == "holds"
    for as_well in (([run(1.5)], []), ([], [run(0.3)])):
        found = forgets_less("c", ours, theirs, as_well)
        assert found.answer == "cannot tell" and "rates that are as good" in found.why
        assert found.value == pytest.approx(0.5, rel=0.05)


def test_a_rate_is_as_good_where_no_loss_tells_it_from_the_best():
    best = run(1.0, noise=0.3)
    assert as_well_as(best, run(1.0, noise=0.3, choosing=0.0))
    assert as_well_as(best, run(1.0, noise=0.3, seed=4, choosing=0.01))
    assert not as_well_as(best, run(1.0, noise=0.3, choosing=0.2))
    assert not as_well_as(best, best.model_copy(update={"failed": "no number"}))


def test_what_is_above_its_budget_is_in_no_curve():
    ours = run(1.0)
    above = ours.points[1].model_copy(update={"whole": False})
    assert curve(ours.model_copy(update={"points": [ours.points[0], above, *ours.points[2:]]})) == [
        (point.loss, point.kl) for point in ours.points if point.step != 1
    ]


def test_what_nobody_learned_tells_nothing():
    flat = run(1.0)
    flat = flat.model_copy(update={"points": [flat.points[0]] * 3})
    assert forgets_less("c", [flat] * 3, [run(1.0)] * 3).answer == "cannot tell"
    assert forgets_less("c", [run(1.0)], [run(2.0)]).answer == "cannot tell"


@settings(deadline=None)
@given(st.floats(0.05, 0.95))
def test_kl_is_read_off_the_line_between_two_points(share):
    points = [(2.0, 0.0), (1.0, 0.4), (0.5, 0.5)]
    assert kl_at(points, 2.0 - share) == pytest.approx(0.4 * share**2)  # KL grows with the square of a change
    assert 0.4 < kl_at(points, 1.0 - share / 2) < 0.5


def test_factors():
    assert factor("c", 3.3, 3).answer == "holds"
    assert factor("c", 2.9, 3).answer == "does not hold"
