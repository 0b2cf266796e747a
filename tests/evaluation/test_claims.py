"""A claim holds only where numbers say so, on data of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.evaluation.claims import as_good, equal_loss, factor, forgets_less, improved, kl_at, paired


def runs(shift=0.0, seeds=3, items=60, noise=0.02, seed=0):
    """Of items with losses of their own, which every run shares but for noise."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(10, 60, items).astype(float)
    loss = generator.gamma(9, 0.15, items)
    noises = np.random.default_rng(seed + 1 + int(abs(shift) * 1000)).normal(0, noise, (seeds, items))
    return np.stack((tokens * (loss + shift + noises), np.broadcast_to(tokens, (seeds, items))), -1)


@pytest.mark.parametrize(("shift", "answer"), [(0.0, "holds"), (-0.1, "holds"), (0.1, "does not hold")])
def test_as_good_is_within_the_margin(shift, answer):
    found = as_good("c", runs(shift), runs())
    assert found.answer == answer
    assert found.low <= shift <= found.high


def test_what_noise_hides_cannot_be_told():
    assert as_good("c", runs(0.02, noise=0.5, items=10), runs(noise=0.5, items=10)).answer == "cannot tell"


def test_a_method_beside_itself_does_not_differ():
    assert paired(runs(), runs()) == (0.0, 0.0, 0.0)


def test_improvement_is_over_a_base_of_one_run():
    base = runs(seeds=1)
    assert improved("c", runs(-0.2), base).answer == "holds"
    assert improved("c", runs(0.2), base).answer == "does not hold"


def curve(rate, floor=1.0):
    """A run that forgets `rate` for each squared nat it gains."""
    return [(2.0 - gain, rate * gain**2) for gain in np.linspace(0, 2.0 - floor, 4)]


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
    ours = [curve(rate * factor, floor=1.5) for factor in (0.98, 1.0, 1.03)]
    theirs = [curve(factor, floor=0.9) for factor in (1.01, 1.0, 0.98)]
    found = forgets_less("c", ours, theirs)
    assert found.answer == answer
    assert found.value == pytest.approx(rate, rel=0.05)
    assert equal_loss([*ours, *theirs]) == pytest.approx(1.5)


def test_what_nobody_learned_tells_nothing():
    flat = [(2.0, 0.0), (2.1, 0.1), (2.2, 0.2)]
    assert forgets_less("c", [flat] * 3, [curve(1.0)] * 3).answer == "cannot tell"
    assert forgets_less("c", [curve(1.0)], [curve(2.0)]).answer == "cannot tell"


@settings(deadline=None)
@given(st.floats(0.05, 0.95))
def test_kl_is_read_off_the_line_between_two_points(share):
    points = [(2.0, 0.0), (1.0, 0.4), (0.5, 0.5)]
    assert kl_at(points, 2.0 - share) == pytest.approx(0.4 * share**2)  # KL grows with the square of a change
    assert 0.4 < kl_at(points, 1.0 - share / 2) < 0.5


def test_factors():
    assert factor("c", 3.3, 3).answer == "holds"
    assert factor("c", 2.9, 3).answer == "does not hold"
