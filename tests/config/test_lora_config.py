"""Layers and targets mean the same however they are written, and what cannot be meant is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ("3", (3,)),
        (3, (3,)),
        (0, (0,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        (" 0 - 3 , 7 ", None),
        (" 0-3 , 7 ", (0, 1, 2, 3, 7)),
        ("7,0-3", (0, 1, 2, 3, 7)),
        ("1,1-2,2", (1, 2)),
        ("5-5", (5,)),
        ([0, 1, 7], (0, 1, 7)),
        ((4,), (4,)),
    ],
)
def test_layers_are_numbers_and_ranges(written, layers):
    if layers is None:
        with pytest.raises(ConfigError):
            LoraConfig(layers=written)
    else:
        assert LoraConfig(layers=written).layers == layers


@pytest.mark.parametrize(
    "written",
    [
        "",
        ",",
        "a",
        "1,",
        "-1",
        "1-",
        "-",
        "3-1",
        "1.5",
        "1-2-3",
        "0x1",
        "²",
        "0-99999",
        -1,
        [-1],
        [1.5],
        ["x"],
        1.5,
        {},
    ],
)
def test_layers_that_are_no_block_numbers_are_refused(written):
    with pytest.raises(ConfigError, match='setting "layers') as caught:
        LoraConfig(layers=written)
    assert repr(written if not isinstance(written, list) else written[0]) in str(caught.value)


@given(numbers=st.sets(st.integers(0, 200), min_size=1, max_size=30))
def test_any_set_of_blocks_survives_being_written_as_ranges(numbers):
    ranges, ordered = [], sorted(numbers)
    for number in ordered:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
    assert LoraConfig(layers=text).layers == tuple(ordered)


@pytest.mark.parametrize(
    ("written", "targets"),
    [
        ("all-linear", ("all-linear",)),
        ("q_proj,v_proj", ("q_proj", "v_proj")),
        ("q_proj, v_proj", ("q_proj", "v_proj")),
        ("self_attn.q_proj", ("self_attn.q_proj",)),
        (["q_proj", "v_proj"], ("q_proj", "v_proj")),
        (r"layers\.(0|1)\..*_proj", (r"layers\.(0|1)\..*_proj",)),
        (r".*\.[0-9]{1,2}\.mlp", (r".*\.[0-9]{1,2}\.mlp",)),
    ],
)
def test_names_are_split_at_commas_and_regular_expressions_stay_whole(written, targets):
    assert LoraConfig(targets=written).targets == targets


@pytest.mark.parametrize("written", ["", ",", "q_proj,", [], ["q_proj", ""], (), None, 3, [3]])
def test_targets_that_name_nothing_are_refused(written):
    with pytest.raises(ConfigError, match='setting "targets'):
        LoraConfig(targets=written)


@pytest.mark.parametrize(
    "values",
    [
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"q_proj": True}},
        {"rank_pattern": {"q_proj": "4"}},
        {"alpha_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"q_proj": float("nan")}},
        {"rank_pattern": ["q_proj"]},
    ],
)
def test_a_pattern_is_held_to_the_range_of_what_it_replaces(values):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**values)
    assert next(iter(values)) in str(caught.value)


def test_the_phases_of_adalora_leave_steps_for_pruning():
    assert AdaLoraConfig(warmup=0.25, final=0.5).final == 0.5
    with pytest.raises(ConfigError, match="no steps for pruning"):
        AdaLoraConfig(warmup=0.5, final=0.5)
