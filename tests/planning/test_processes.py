"""What a plan says of several processes: shares, memory, what cannot be, and what sharding would buy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.planning_models import shape_of
from kit.sampling import draws
from rankwise.config.adapters import FullConfig, LoraConfig
from rankwise.config.experiment import Planned
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError
from rankwise.planning.devices import Device, find_device
from rankwise.planning.estimate import Estimate
from rankwise.planning.plan import Plan, planned
from rankwise.planning.processes import ONE_PROCESS, Processes, sharded_peak
from rankwise.planning.rows import Drawn, PlannedRows
from rankwise.planning.time import Probe, Speed, Step
from rankwise.rows.encoded.dealing import deal
from rankwise.system.processor import usable_cores

CARD = find_device("h100")
HERE = Device("a processor", "processor", 20 * 10**9, 0, 5e11, 2.5e11, "assumed", flags=frozenset({"avx512_bf16"}))
STARTER = shape_of("smollm2-135m")
STEPS, LORA = 100, LoraConfig()


def rows(*lengths: int) -> PlannedRows:
    count, tokens = (Estimate.exactly(float(one)) for one in (len(lengths), sum(lengths)))
    drawn = tuple(Drawn((length,), length, length) for length in sorted(lengths))
    return PlannedRows(count, tokens, tokens, 0, max(lengths), max(lengths), drawn, exact=True)


def plan_of(
    processes: Processes, device: Device = CARD, of: PlannedRows | None = None,
    method: LoraConfig | FullConfig = LORA, **training: object,
) -> Plan:  # fmt: skip
    config = {"model": "smollm2-135m", "adapter": method.model_dump(), "training": {"steps": STEPS, **training}}
    return planned(Planned.model_validate(config), STARTER, device, of, None, processes=processes)


def test_a_process_alone_is_planned_as_ever():
    alone = plan_of(ONE_PROCESS)
    assert alone.own_step == alone.step and not alone.processes.is_several
    assert alone.duration is not None and plan_of(Processes(1)).duration == alone.duration


@settings(max_examples=draws(60), deadline=None)
@given(
    lengths=st.lists(st.integers(1, 900), min_size=2, max_size=40), count=st.integers(2, 9), batch=st.integers(1, 12)
)
def test_the_largest_share_is_that_of_dealt_steps(lengths: list[int], count: int, batch: int) -> None:
    training, of = TrainingConfig(batch_size=batch), rows(*lengths)
    share = Processes(count).largest_share(training, of)
    assert 1 / count - 1e-9 <= share <= 1
    if len(set(lengths)) == 1:
        size = min(batch, len(lengths))
        assert share == pytest.approx(-(-size // count) / size)


def test_uneven_rows_make_others_wait():
    """Of two rows of which one is long, the process that has it computes nearly all."""
    training = TrainingConfig(batch_size=2)
    assert Processes(2).largest_share(training, rows(*[10] * 50)) == 0.5
    mixed = Processes(2).largest_share(training, rows(*[10] * 50, *[1000] * 50))
    assert 0.6 < mixed < 0.85
    lengths = (10, 10, 10, 30)
    assert [sum(lengths[row] for row in share) for share in deal(lengths, 2)] == [30, 30]


def test_more_processes_than_rows_leave_some_without():
    plan = plan_of(Processes(8), batch_size=3)
    assert plan.rows_in_step == 3 and plan.largest_share == pytest.approx(1 / 3)


def test_each_process_has_the_whole_base_and_its_share_of_the_rows():
    alone, two = plan_of(ONE_PROCESS, batch_size=2).forecast, plan_of(Processes(2), batch_size=2).forecast
    for part in ("weights", "adapter", "gradients", "optimizer"):
        assert alone.memory[part] == two.memory[part]
    assert two.amount.tokens == alone.amount.tokens // 2
    assert two.memory["activations"] == alone.memory["activations"] / 2


def test_processes_share_the_memory_of_a_machine_and_have_a_card_each():
    four = Processes(4)
    assert four.part_of(HERE, here=True).memory == HERE.memory // 4 and four.part_of(CARD, here=False) == CARD


def test_cores_are_shared_so_that_nothing_is_gained_where_they_are_all_busy():
    alone, two = plan_of(ONE_PROCESS, HERE), plan_of(Processes(2), HERE)
    assert alone.duration is not None and two.duration is not None and alone.speed is not None
    if usable_cores() % 2 == 0:
        assert isinstance(alone.speed, Speed)
        apart = alone.speed.preparation.times(alone.own_step.micro_batches - two.own_step.micro_batches)
        together = two.duration.step.likely + apart.likely  # each process prepares its own operations
        assert together == pytest.approx(alone.duration.step.likely)
    probe = Probe(0.1, 1e-3, "here", "now")
    slower = Processes(2).speed(probe, HERE)
    assert isinstance(slower, Probe) and slower.per_token >= 2e-3 and slower.constant == 0.1
    assert Processes(2).speed(probe, CARD) is probe


def test_time_is_that_of_the_slowest_share():
    alone, eight = plan_of(ONE_PROCESS, batch_size=512), plan_of(Processes(8), batch_size=512)
    assert alone.duration is not None and eight.duration is not None
    step = eight.duration.step
    assert step.likely == pytest.approx(alone.duration.step.likely / 8, rel=1e-6)
    assert eight.duration.total.likely == pytest.approx(STEPS * step.likely)
    assert eight.step == alone.step, "all of them together learn from as many rows"


def test_a_slowest_share_needs_as_many_micro_batches_as_fit():
    training = TrainingConfig(batch_size=8, max_batch_tokens=100)
    found = Processes(2).slowest(Step(8e9, 800, 8), training, None)
    assert (found.operations, found.tokens, found.micro_batches) == (4e9, 400, 4)


def test_what_sharding_would_buy():
    plan = plan_of(Processes(4))
    assert plan.sharded_peak is not None
    base = 2 * STARTER.parameters
    block = 2 * sum(layer.parameters for layer in STARTER.block_layers(0))
    rest = base - 30 * block  # the embedding, which the head shares, and the last norm
    assert plan.forecast.peak - plan.sharded_peak == pytest.approx(0.75 * base - rest - block, abs=2)
    full = plan.methods["full"]
    peak = sharded_peak(full, Processes(4))
    assert peak is not None, "weights, gradients and two averages are divided"
    divided = 0.75 * 16 * STARTER.parameters
    assert full.peak - peak == pytest.approx(divided - 2 * (2 * rest + block), abs=2)


def test_what_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.planning.processes.graphics_cards", lambda: [CARD, CARD])
    with pytest.raises(ConfigError, match="not on m1-16gb"):
        Processes(2).part_of(find_device("m1-16gb"), here=False)
    with pytest.raises(ConfigError, match="needs 4 GPUs on this machine, which has 2"):
        Processes(4).part_of(CARD, here=True)
