"""Forgetting is measured on as many blocks as its interval needs, and the interval holds all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import tiny_model
from rankwise.config.adapters import LoraConfig
from rankwise.evaluation.forgetting import Compared, _both, forgetting
from rankwise.evaluation.intervals import Looks, interval, quantile
from rankwise.evaluation.subject import BaseAndTuned, base_and_tuned
from rankwise.evaluation.text import Text
from rankwise.methods.inject import inject
from rankwise.runs.measured import Measurement


@pytest.fixture(scope="module")
def sides() -> BaseAndTuned:
    adapters = inject(tiny_model("llama"), LoraConfig(rank=3))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return base_and_tuned(adapters)


def words(count: int = 32, length: int = 12) -> Text:
    ids = torch.randint(96, (count, length + 1), generator=torch.Generator().manual_seed(0))
    return Text(ids, "random words", "0" * 64, ())


@pytest.mark.parametrize("blocks", [1, 3, 7, 8, 20, 32, 40])
def test_each_look_is_spread_over_the_text_and_holds_the_one_before(blocks: int) -> None:
    looks = Looks()
    order, sizes = looks.order(blocks), looks.sizes(blocks)
    assert sorted(order) == list(range(blocks)) and sizes[-1] == blocks
    assert sizes == sorted(set(sizes)) and all(size >= 8 for size in sizes[:-1])
    for size in sizes:
        gaps = np.diff(sorted(order[:size]))
        assert gaps.size == 0 or set(gaps) == {gaps[0]}, "evenly spread"
    assert blocks != 32 or sizes == [8, 16, 32]


@pytest.mark.parametrize(
    ("freedom", "level", "value"),
    [(1, 0.975, 12.7062), (2, 0.975, 4.3027), (3, 0.975, 3.1824), (10, 0.95, 1.8125), (31, 0.995, 2.7440)],
)
def test_the_quantiles_are_those_of_the_tables(freedom: int, level: float, value: float) -> None:
    assert quantile(freedom, level) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("spread", [0.2, 0.6, 1.2], ids=["even", "uneven", "wild"])
def test_an_interval_that_chose_when_to_stop_still_holds(spread: float) -> None:
    """With that of a number fixed before, at 95 % by itself, it would not: to stop when it looks narrow is a choice."""
    looks, draw, mean = Looks(), np.random.default_rng(0), 0.1
    shape = 1 / spread**2
    held, stopped = 0, set()
    for values in draw.gamma(shape, mean / shape, (1500, 32)):
        for size in looks.sizes(32):
            found = looks.interval(list(values[:size]), 32)
            if looks.enough(found):
                break
        stopped.add(size)
        held += found.low <= mean <= found.high
    assert held / 1500 >= (0.95 if spread < 1 else 0.93)
    assert len(stopped) > 1 or spread > 1, "it stops at one look or at another"


def test_a_text_too_short_for_several_looks_pays_for_one() -> None:
    assert Looks().interval([0.1, 0.3], 7) == interval([0.1, 0.3], 1)


def test_it_stops_at_a_share_of_the_mean_or_at_an_amount() -> None:
    enough = Looks().enough
    assert enough(Measurement(value=1, low=0.75, high=1.25)) and not enough(Measurement(value=1, low=0.74, high=1.26))
    assert enough(Measurement(value=0.001, low=0, high=0.006)) and not enough(
        Measurement(value=0.001, low=0, high=0.0061)
    )


def test_what_does_not_differ_takes_the_first_look_alone(sides: BaseAndTuned) -> None:
    asked: list[int] = []

    def counted(ids: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        return sides.base(ids)

    found = forgetting(BaseAndTuned(counted, sides.base), words(), looks=Looks())
    assert (found.kl, found.low, found.high) == (0, 0, 0)
    assert len(asked) == found.blocks == 8 and found.available == 32 and found.positions == 96
    assert found.sums is not None and found.sums.numbers == list(range(0, 32, 4))
    assert "8 of them were enough" in found.measured_on


def test_the_blocks_of_a_look_are_measured_as_all_are(sides: BaseAndTuned) -> None:
    fixed, stepwise = forgetting(sides, words()), forgetting(sides, words(), looks=Looks())
    numbers = stepwise.sums.numbers or range(32)
    assert stepwise.sums.kl == [fixed.sums.kl[number] for number in numbers]
    values = [nats / positions for nats, positions in stepwise.sums.kl]
    assert stepwise.kl == pytest.approx(np.mean(values)) and stepwise.low < stepwise.kl < stepwise.high
    assert stepwise.high == pytest.approx(interval(values, 3).high)


def test_no_interval_of_a_divergence_reaches_below_nothing(sides: BaseAndTuned) -> None:
    class Never(Looks):
        def enough(self, kl: Measurement) -> bool:
            return False

    found = forgetting(sides, words(), looks=Never())
    assert found.blocks == 32 and found.available is None and found.sums.numbers is None and found.low >= 0
    kl, change = _both([Compared(nats, nats, 5, 10) for nats in (0.0, 9.0)], Looks(), 2)
    assert change.low < 0 == kl.low < kl.value == change.value and kl.high == change.high
