"""Advice: each where its evidence asks for it, with its source, and none where there is none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planned_shapes import adapted, llama
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.training import TrainingConfig
from rankwise.planning.advice import Facts, advise
from rankwise.planning.rows import Counted, Drawn, planned_rows

SHAPE = llama("smollm2-135m")
ENDS = sum(layer.inputs + layer.outputs for layer in SHAPE.layers if layer.path in adapted(SHAPE, 1))


def some_rows(count=1000, tokens=200, supervised=100, limit=1024):
    document = Drawn(tokens, supervised, 4 * tokens)
    return planned_rows(Counted(count, count * 4 * tokens, 1, False, (document,), tokens, True), limit=limit)


def asked(rank=1, *leaves, adapter=None, rows=None, context=8192, max_length=1024, **training) -> Facts:
    ranks = adapted(SHAPE, rank, *leaves) if not isinstance(adapter, FullConfig) else {}
    layers = {layer.path: layer for layer in SHAPE.layers}
    trainable = sum(each * (layers[path].inputs + layers[path].outputs) for path, each in ranks.items())
    return Facts(
        adapter or LoraConfig(rank=rank), TrainingConfig(**training), DataConfig(path="d.jsonl", max_length=max_length),
        rows or some_rows(), 576, SHAPE.parameters, trainable or SHAPE.parameters, ENDS, ranks, context,
    )  # fmt: skip


def changes(case: Facts) -> dict[str, str]:
    return dict(advice.change for advice in advise(case) if advice.change is not None)


def texts(case: Facts) -> str:
    return " ".join(advice.text for advice in advise(case))


def test_a_training_that_is_well_set_up_gets_none():
    assert advise(asked(rank=1)) == []


CASES = [
    asked(rank=256),
    asked(rank=1, rows=some_rows(100_000, 400, 300)),
    asked(adapter=FullConfig()),
    asked(adapter=FullConfig(), learning_rate=2e-3),
    asked(learning_rate=1.6e-2),
    asked(learning_rate=5e-4),
    asked(steps=50),
    asked(4, "q_proj", "v_proj"),
    asked(batch_size=64),
    asked(epochs=5.0),
    asked(rows=some_rows(1000, 1500, 100)),
]


@pytest.mark.parametrize("case", CASES)
def test_every_advice_has_its_arithmetic_and_its_source(case):
    found = advise(case)
    assert found
    for advice in found:
        assert re.search(r"\d", advice.why) and advice.text.endswith(".")
        assert re.search(r"\d{4}|lab/|rows themselves", advice.source)
        if advice.change is not None:
            part, _, name = advice.change[0].partition(".")
            specs = {"adapter": (LoraConfig, AdaLoraConfig), "training": (TrainingConfig,), "data": (DataConfig,)}[part]
            assert any(name in spec.model_fields for spec in specs)


def test_every_rule_is_asked_for_by_some_case():
    said = {advice.text.split()[0] + advice.text.split()[1] for case in CASES for advice in advise(case)}
    assert len(said) >= 8


def test_a_small_adapter_is_told_the_rank_that_holds_the_rows():
    """Two bits for a parameter: 30 million supervised tokens want 15 million parameters."""
    rows = some_rows(100_000, 400, 300)
    wanted = int(changes(asked(rank=1, rows=rows))["adapter.rank"])
    assert 2 * wanted * ENDS >= rows.supervised.likely > 2 * (wanted - 1) * ENDS
    assert "adapter.rank" not in changes(asked(rank=wanted, rows=rows))
    assert "adapter.budget" in changes(asked(rank=1, rows=rows, adapter=AdaLoraConfig(budget=1)))


def test_a_rank_far_above_what_the_rows_hold_is_said_to_be():
    assert "about as well" in texts(asked(rank=256))
    assert changes(asked(rank=256))["adapter.rank"] == "8"
    assert not changes(asked(rank=16))


@given(st.integers(1, 512), st.integers(1, 10**6))
def test_the_advised_rank_holds_the_rows(rank, count):
    case = asked(rank=rank, rows=some_rows(count))
    advised = changes(case).get("adapter.rank")
    holds = 2 * ENDS * int(advised or rank)
    assert holds >= min(case.bits, 2 * ENDS * 4096)


def test_rates_are_judged_by_auto_at_the_models_width():
    assert changes(asked(learning_rate=1.6e-2))["training.learning_rate"] == "auto"
    assert changes(asked(learning_rate=5e-4))["training.learning_rate"] == "auto"
    for rate in (1e-3, 2e-3, 8e-3):
        assert not changes(asked(learning_rate=rate))
    wide = replace(asked(learning_rate=5e-4), width=4096)
    assert not changes(wide)  # the best of Biderman et al. there
    assert changes(replace(asked(learning_rate=2e-5), width=4096))
    whole = asked(adapter=FullConfig(), learning_rate=2e-5, rows=some_rows(10**8))
    assert not changes(replace(whole, width=4096))
    assert changes(asked(adapter=FullConfig(), learning_rate=1e-3, rows=some_rows(10**8))) == {
        "training.learning_rate": "auto"
    }


def test_attention_alone_is_advised_against_and_all_linear_layers_are_not():
    case = asked(4, "q_proj", "v_proj")
    assert changes(case)["adapter.targets"] == "all-linear"
    assert "all-linear" not in changes(asked(1)).values()
    assert "all-linear" not in changes(asked(1, "q_proj", "down_proj")).values()


def test_the_whole_model_is_advised_against_for_few_rows_only():
    assert changes(asked(adapter=FullConfig()))["adapter.method"] == "lora"
    assert "adapter.method" not in changes(asked(adapter=FullConfig(), rows=some_rows(10**8)))
    assert "adapter.method" not in changes(asked(rank=1))


def test_large_steps_many_passes_and_short_runs():
    assert changes(asked(batch_size=33))["training.batch_size"] == "32"
    assert "training.batch_size" not in changes(asked(batch_size=32))
    assert "training.batch_size" not in changes(asked(adapter=FullConfig(), batch_size=99))
    assert "passes" in texts(asked(epochs=4.5)) and "passes" not in texts(asked(epochs=4.0))
    assert "passes" in texts(asked(steps=1000))  # 16 rows each, of a thousand
    rate = float(changes(asked(steps=99))["training.learning_rate"])
    assert rate == pytest.approx(3e-3)
    assert "training.learning_rate" not in changes(asked(steps=100))


def test_rows_that_are_too_long_are_kept_by_a_higher_limit_that_the_model_reads():
    long = some_rows(1000, 1500, 100)
    assert changes(asked(rows=long))["data.max_length"] == "1536"
    assert changes(asked(rows=long, context=1200))["data.max_length"] == "1200"
    assert "data.max_length" not in changes(asked(rows=long, context=1024))
    assert "data.max_length" not in changes(asked())
