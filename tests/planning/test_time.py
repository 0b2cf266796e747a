"""Seconds: by assumption, and as a probe measured them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.planned_shapes import SIZE, adapted, llama
from rankwise.errors import RankwiseError
from rankwise.planning.devices import DEVICES, Device
from rankwise.planning.operations import Load, Operations
from rankwise.planning.time import (
    MOST_SHARE,
    PREPARATION,
    PROCESSORS,
    Probe,
    Speed,
    Step,
    duration,
    speed_of,
)  # fmt: skip

RESULTS = Path(__file__).parents[2] / "bench" / "results"
BEST = 1.05
"""The best product in bfloat16 over twice the rate in float32: 430 and 410 GFLOP/s (bench/plan-accuracy.md)."""


def epyc(name="AMD EPYC") -> Device:
    """The machine of docs/speed.md, as planning/devices.py sees one like it."""
    rate = best_product("train-step-2026-11-25") / BEST
    return Device(name, "processor", 25 * 10**9, 0, rate, rate / 2, "measured", flags=frozenset({"avx512_bf16"}))


def best_product(result: str) -> float:
    """Operations per second in bfloat16."""
    return max(json.loads((RESULTS / f"{result}.json").read_text())["gemm"])


def assumed(device: Device, dtype: str = "bfloat16", blocks: int = 1) -> Speed:
    speed = speed_of(device, dtype, blocks)
    assert speed is not None
    return speed


def test_seconds_are_operations_over_rate_and_efficiency():
    speed = assumed(DEVICES["h100"], blocks=0)
    made = duration(Step(operations=989.4e12, tokens=1), 100, speed)
    assert (made.step.low, made.step.likely, made.step.high) == pytest.approx((1 / 0.43, 1 / 0.26, 1 / 0.13))
    assert made.total == made.step.times(100)


def test_a_small_model_on_a_large_card_waits_for_its_kernels():
    """Axolotl's forward pass of 512 tokens through the starter took 41 ms on an H100, where the peak needs 0.3 ms."""
    shape = llama("smollm2-135m")
    made = Operations(shape, Load((512,), 512), adapted(shape, 16)).total
    step = duration(Step(made, 512), 1, assumed(DEVICES["h100"], blocks=30)).step
    assert step.low == pytest.approx(0.0412, rel=0.01)
    assert step.likely == pytest.approx(3 * 0.0412, rel=0.01)
    twice = duration(Step(made, 512, micro_batches=2), 1, assumed(DEVICES["h100"], blocks=30)).step
    assert twice.likely == 2 * step.likely


def test_a_processor_prepares_each_block_of_each_micro_batch_beside_its_products():
    whole, apart = assumed(epyc(), blocks=30), assumed(epyc(), blocks=0)
    step = Step(operations=1e11, tokens=100, micro_batches=2)
    more = duration(step, 1, whole).step.likely - duration(step, 1, apart).step.likely
    assert more == pytest.approx(2 * 30 * PREPARATION.likely)


ANCHORS = [
    ("h100", "llama-3.1-8b", 4096, 12_473, adapted(llama("llama-3.1-8b"), 16)),
    ("rtx-4090", "llama-3.1-8b", 2048, 3_083, adapted(llama("llama-3.1-8b"), 8)),
]


@pytest.mark.parametrize(("device", "model", "length", "tokens_per_second", "ranks"), ANCHORS)
def test_the_best_published_speeds_are_the_upper_end(device, model, length, tokens_per_second, ranks):
    shape = llama(model)
    made = Operations(shape, Load((length,), length), ranks).total
    fastest = duration(Step(made, length), 1, assumed(DEVICES[device])).step.low
    assert length / fastest == pytest.approx(tokens_per_second, rel=0.02)


def test_pefts_own_run_is_what_is_likely():
    size = dict(zip(SIZE, (3072, 8192, 28, 24, 8, 128, 128256, True), strict=True))
    shape = llama(**size)
    made = Operations(shape, Load((300,), 300), adapted(shape, 32, "q_proj", "v_proj")).total
    likely = duration(Step(made, 300, micro_batches=0), 1, assumed(DEVICES["l40s"])).step.likely
    assert 300 / likely == pytest.approx(7198, rel=0.02)


@pytest.mark.parametrize(
    ("result", "width"),
    [
        ("train-step-2026-11-25", 576), ("train-step-2026-11-29", 576), ("train-step-int8-135m-2026-12-01", 576),
        ("train-step-int8-0.5b-2026-12-01", 896), ("train-step-int8-1.5b-2026-12-01", 1536),
    ],
)  # fmt: skip
def test_what_docs_speed_measured_lies_within_what_is_assumed_of_a_processor(result, width):
    rate, rows = best_product(result) / BEST, json.loads((RESULTS / f"{result}.json").read_text())["rows"]
    reached = {row["stack"]: row["operations_per_second"] / rate for row in rows}
    share = speed_of(epyc(), "bfloat16", 1, width=width).efficiency.share
    faster = speed_of(epyc(), "bfloat16", 1, int8=True, width=width).efficiency.share
    for stack in {"rankwise", "rankwise-compiled"} & set(reached):
        assert reached[stack] == pytest.approx(share.likely, rel=0.2) and reached[stack] < 1.02 * share.high
    assert reached.get("rankwise-plain", share.low) == pytest.approx(share.low, rel=0.05)
    assert reached.get("rankwise-int8", faster.likely) == pytest.approx(faster.likely, rel=0.2)


def test_a_model_of_7b_reaches_what_is_assumed_of_wide_blocks():
    stored = json.loads((RESULTS / "seven-billion-2026-11-25.json").read_text())
    speed = speed_of(replace(epyc(), bfloat16=max(stored["gemm"]) / BEST), "bfloat16", 0, width=4096)
    reached = stored["operations"] / stored["steps"][1]["seconds"]
    assert reached == pytest.approx(speed.rate * speed.efficiency.share.likely, rel=0.1)


@pytest.mark.parametrize(("width", "times"), [(0, 1), (32, 1), (576, 1), (720, 1.25**0.7), (16384, MOST_SHARE)])
def test_no_width_makes_a_processor_slower_than_the_starter_does(width, times):
    usual, found = (speed_of(epyc(), "bfloat16", 1, **named).efficiency.share for named in ({}, {"width": width}))
    assert found.likely == pytest.approx(times * usual.likely)


def test_where_no_rate_is_known_nothing_is_said():
    assert speed_of(DEVICES["t4"], "bfloat16", 1) is None
    assert assumed(DEVICES["t4"], "float32").rate == 8.1e12


positive = st.floats(1e-3, 1e3)


@given(positive, positive, st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_probe_finds_the_line_that_made_its_steps(constant, per_token, few, more):
    many = few + more
    line = [constant + per_token * tokens for tokens in (few, many)]
    probe = Probe.of((few, line[0]), (many, line[1]), machine="m", when="now")
    assert probe.per_token == pytest.approx(per_token, rel=1e-3, abs=1e-9 * max(line))
    assert probe.constant >= 0
    made = duration(Step(1.0, many), 3, probe)
    assert made.step.likely == pytest.approx(line[1])
    assert made.total.low <= 3 * line[1] <= made.total.high


def test_the_probe_of_docs_speed_tells_its_other_sizes():
    """From the steps of 512 and 2,048 tokens to that of 8,192, within what single steps were off the line."""
    stored = json.loads((RESULTS / "scaling-2026-11-25.json").read_text())["time"]
    whole = {row["tokens"]: row["seconds"] for row in stored if row["micro_batches"] == 1 and row["length"] == 256}
    probe = Probe.of((512, whole[512]), (2048, whole[2048]), machine="AMD EPYC", when="2026-11-25")
    assert probe.constant == pytest.approx(0.105, abs=0.01)
    assert probe.per_token == pytest.approx(1.056e-3, rel=0.02)
    assert duration(Step(0, 8192), 1, probe).step.likely == pytest.approx(whole[8192], rel=0.03)


@pytest.mark.parametrize(("short", "long"), [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
def test_a_probe_whose_larger_step_was_no_slower_is_refused(short, long):
    with pytest.raises(RankwiseError, match="Run the probe again"):
        Probe.of((10, short), (20, long), machine="m", when="now")


def test_a_step_of_no_tokens_takes_no_less_than_no_time():
    probe = Probe.of((10, 1.0), (20, 4.0), machine="m", when="now")
    assert probe.constant == 0 and probe.per_token == 0.2


def test_more_work_never_takes_less():
    for device in DEVICES.values():
        speed = speed_of(device, device.dtype, 4)
        if speed is None:
            continue
        small, large = (duration(Step(made, 1), 10, speed).total for made in (1e12, 3e15))
        assert small.low <= large.low and small.likely < large.likely and small.high < large.high


def test_a_processor_is_as_efficient_as_its_instructions():
    known = {flag: assumed(replace(epyc(), flags=frozenset({flag}))).efficiency for flag in ("amx_bf16", "avx512_bf16")}
    assert known == {flag: PROCESSORS[flag] for flag in known}
    assert assumed(epyc(), "float32").efficiency == PROCESSORS["float32"]
