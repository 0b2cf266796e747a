"""What a plan says of several processes: shares, memory, sums, what cannot be, and what sharding would buy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.config.adapters import FullConfig, LoraConfig
from rankwise.config.planning import Planned
from rankwise.config.training import TrainingConfig
from rankwise.data.dealing import deal
from rankwise.errors import ConfigError
from rankwise.forward.plan import shape_of
from rankwise.planning import exchange as exchange_module
from rankwise.planning.devices import DEVICES, Device, find_device
from rankwise.planning.estimate import Estimate
from rankwise.planning.exchange import exchange, sharded
from rankwise.planning.links import LINKS, link_of, misfit, network_of
from rankwise.planning.plan import Plan, planned
from rankwise.planning.processes import ALONE, Processes
from rankwise.planning.rows import PlannedRows
from rankwise.planning.several import several_of
from rankwise.planning.time import Probe, Speed, Step
from rankwise.runs.manifest import usable_cores
from rankwise.training import world
from sampling import draws

CARD, SLOTS = find_device("h100"), find_device("rtx-4090")
HERE = Device("a processor", "processor", 20 * 10**9, 0, 5e11, 2.5e11, None, "assumed", flag="avx512_bf16")
STARTER = shape_of("smollm2-135m")
STEPS = 100


def rows(*lengths: int) -> PlannedRows:
    count, tokens = (Estimate.exactly(float(one)) for one in (len(lengths), sum(lengths)))
    return PlannedRows(count, tokens, tokens, 0, sorted(lengths)[len(lengths) // 2], max(lengths), max(lengths),
                       tuple(sorted(lengths)), exact=True)  # fmt: skip


def plan_of(processes: Processes, device: Device = CARD, of: PlannedRows | None = None, **training: object) -> Plan:
    config = {"model": "smollm2-135m", "training": {"steps": STEPS, **training}}
    return planned(Planned.model_validate(config), STARTER, device, of, None, processes=processes)


def test_a_process_alone_is_planned_as_ever():
    alone = plan_of(ALONE)
    assert alone.own_step == alone.step and several_of(alone) is None
    assert exchange(ALONE, CARD, 1000) is None and sharded(alone.forecast, ALONE, CARD, 1) is None
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
    several = several_of(plan_of(Processes(8), batch_size=3))
    assert several is not None and several.idle == 5 and several.largest_share == pytest.approx(1 / 3)
    assert several.speedup is not None and several.speedup < 3


def test_each_process_has_the_whole_base_and_its_share_of_the_rows():
    alone, two = plan_of(ALONE, batch_size=2).forecast, plan_of(Processes(2), batch_size=2).forecast
    for part in ("weights", "adapter", "gradients", "optimizer"):
        assert alone.memory[part] == two.memory[part]
    assert two.job.tokens == alone.job.tokens // 2 and two.memory["activations"] == alone.memory["activations"] / 2


def test_processes_share_the_memory_of_a_machine_and_have_a_card_each():
    four = Processes(4)
    assert (four.memory_of(HERE), four.memory_of(CARD)) == (HERE.memory // 4, CARD.memory)
    assert Processes(8, nodes=4).memory_of(HERE) == HERE.memory // 2
    assert (four.drawing(HERE), four.drawing(CARD)) == (1, 4)


def test_cores_are_shared_so_that_nothing_is_gained_where_they_are_all_busy():
    alone, two = plan_of(ALONE, HERE), plan_of(Processes(2), HERE)
    assert alone.duration is not None and two.duration is not None and alone.speed is not None
    expected = exchange(Processes(2), HERE, two.forecast.parameters.trainable)
    assert expected is not None
    if usable_cores() % 2 == 0:
        assert isinstance(alone.speed, Speed)
        apart = alone.speed.preparation.times(alone.own_step.micro_batches - two.own_step.micro_batches)
        together = two.duration.step.likely + apart.likely  # each process prepares its own operations
        assert together == pytest.approx(alone.duration.step.likely + expected.seconds.likely)
    probe = Probe(0.1, 1e-3, "here", "now")
    slower = Processes(2).speed(probe, HERE)
    assert isinstance(slower, Probe) and slower.per_token >= 2e-3 and slower.constant == 0.1
    assert Processes(2).speed(probe, CARD) is probe


def test_a_ring_sends_nearly_twice_the_gradients():
    for count in (2, 8, 64):
        found = exchange(Processes(count), CARD, 1000)
        assert found is not None and found.gradients == 4000 and found.sent == pytest.approx(8000 * (count - 1) / count)
    large = exchange(Processes(2), CARD, 10**9)
    assert large is not None
    rate = large.slowest.reached
    assert large.seconds.likely == pytest.approx(large.sent / rate.likely, rel=0.15), "bytes, not waits"


def test_the_slowest_link_decides():
    within, across = (exchange(Processes(16, nodes), CARD, 10**8) for nodes in (1, 2))
    assert within is not None and across is not None
    assert [link.name for link in across.links] == ["nvlink", "network"] and across.slowest.name == "network"
    assert across.seconds.likely > within.seconds.likely
    fast = exchange(Processes(16, 2, gigabits=400), CARD, 10**8)
    assert fast is not None and fast.seconds.likely < across.seconds.likely
    alone_there = exchange(Processes(2, 2), HERE, 10**6)
    assert alone_there is not None and [link.name for link in alone_there.links] == ["network"]


def test_sums_are_made_in_as_many_parts_as_training_makes():
    assert exchange_module.AT_ONCE == world.AT_ONCE


def test_time_is_that_of_the_slowest_share_and_the_sums():
    alone, eight = plan_of(ALONE, batch_size=512), plan_of(Processes(8), batch_size=512)
    assert alone.duration is not None and eight.duration is not None
    sums = exchange(Processes(8), CARD, eight.forecast.parameters.trainable)
    assert sums is not None
    step = eight.duration.step
    assert step.likely == pytest.approx(alone.duration.step.likely / 8 + sums.seconds.likely, rel=1e-6)
    assert eight.duration.total.likely == pytest.approx(STEPS * step.likely)
    assert eight.step == alone.step, "all of them together learn from as many rows"


def test_a_slowest_share_needs_as_many_micro_batches_as_fit():
    training = TrainingConfig(batch_size=8, max_batch_tokens=100)
    found = Processes(2).slowest(Step(8e9, 800, 8), training, None)
    assert (found.operations, found.tokens, found.micro_batches) == (4e9, 400, 4)


def test_what_sharding_would_buy():
    plan = plan_of(Processes(4))
    found = several_of(plan)
    assert found is not None and found.sharded is not None
    base = 2 * STARTER.parameters
    micro = plan.own_step.micro_batches
    assert found.sharded.received == pytest.approx(2 * 0.75 * base * micro)
    block = 2 * sum(layer.parameters for layer in STARTER.block_layers(0))
    rest = base - 30 * block  # the embedding, which the head shares, and the last norm
    assert plan.forecast.peak - found.sharded.peak == pytest.approx(0.75 * base - rest - block, abs=2)
    full = plan.methods["full"]
    whole = sharded(full, Processes(4), CARD, 1)
    assert whole is not None, "weights, gradients and two averages are divided"
    divided = 0.75 * 16 * STARTER.parameters
    assert full.peak - whole.peak == pytest.approx(divided - 2 * (2 * rest + block), abs=2)
    assert whole.received == pytest.approx(3 * 0.75 * 4 * STARTER.parameters)


def test_links_are_those_of_the_device():
    assert [link_of(device, None).name for device in (HERE, CARD, SLOTS)] == ["loopback", "nvlink", "pcie"]
    assert link_of(DEVICES["h100"], "pcie").rate == 2 * link_of(DEVICES["a100-80gb"], "pcie").rate
    assert network_of(400).rate == 50e9
    for device in (HERE, CARD, SLOTS):
        assert misfit(device, link_of(device, None).name) is None
    for name in LINKS:
        assert len(link_of(HERE if name == "loopback" else CARD, name).source) > 40


@pytest.mark.parametrize(
    ("processes", "device", "cards", "said"),
    [
        (Processes(8, 3), CARD, None, "--processes 8 on --nodes 3"),
        (Processes(2), find_device("m1-16gb"), None, "not on m1-16gb"),
        (Processes(4), CARD, 2, "needs 4 GPUs on this machine, which has 2"),
        (Processes(4, 4, link="pcie"), CARD, None, "--link has no effect"),
        (Processes(4, link="nvlink"), SLOTS, None, "is not known of rtx-4090"),
        (Processes(4, link="pcie"), HERE, None, "connects cards"),
        (Processes(4, link="ethernet"), CARD, None, "is not one of nvlink, pcie, loopback"),
        (Processes(4, gigabits=100), CARD, None, "--network has no effect"),
    ],
)
def test_what_cannot_be_is_named(processes: Processes, device: Device, cards: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        processes.check(device, cards)
    Processes(4, 2).check(CARD, None)
    Processes(4, 2, "pcie", 25).check(CARD, 2)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        Processes(8, 3, "loopback").check(CARD, 2)
    assert len(str(error.value).splitlines()) == 3


def test_adapters_and_whole_models_send_what_learns():
    for spec in (LoraConfig(), FullConfig()):
        plan = plan_of(Processes(2))
        made = plan.methods[spec.method]
        found = exchange(Processes(2), CARD, made.parameters.trainable)
        assert found is not None and found.gradients == made.memory["gradients"]
