"""How a run is measured: what makes no sense is refused, and what costs much is not done unasked."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.config.experiment import Experiment
from rankwise.config.reading import parse_setting, read_experiment
from rankwise.config.validation import READ_SHARE, TIMES, WRITTEN_TOKEN, TextMetric, ValidationConfig
from rankwise.errors import ConfigError
from rankwise.evaluation.metrics import METRICS

COUNTS = st.integers(1, 10**7)


def experiment(held_out=3, **evaluation):
    return Experiment(model="m", data={"path": "d.jsonl", "held_out": held_out}, run="r", validation=evaluation)


def test_the_metrics_of_texts_are_those_there_are():
    assert set(get_args(TextMetric)) == {name for name, metric in METRICS.items() if metric.text is not None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "exact"}, "exact is a metric of answers; set validation.answers"),
        ({"by": "exact", "answers": 0}, "set validation.answers to the number"),
        ({"scores": ["bleu"]}, "bleu is a metric of answers"),
        ({"answers": 4}, "answers need a metric; name one"),
        ({"by": "f1", "answers": 4}, "validation.by"),
        ({"scores": ["loss"], "answers": 4}, "validation.scores.0"),
        ({"keep": "first"}, "validation.keep"),
        ({"patience": 0}, "validation.patience"),
        ({"steps": 0}, "validation.steps"),
        ({"steps": 1.5}, "validation.steps"),
        ({"answers": -1}, "validation.answers"),
        ({"max_new_tokens": 0}, "validation.max_new_tokens"),
        ({"prompts": [""]}, "validation.prompts.0"),
        ({"prompts": ["\ud800"]}, "validation.prompts"),
        ({"every": 3}, 'unknown setting "validation.every"'),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(ConfigError) as caught:
        experiment(**given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [{"steps": 5}, {"keep": "best"}, {"patience": 2}, {"by": "exact", "answers": 3}],
    ids=str,
)
def test_what_needs_rows_to_measure_with_is_refused_without_them(given):
    with pytest.raises(
        ConfigError, match=r"validation\.\w+ has no effect without them.*data\.held_out.*data\.validation"
    ):
        experiment(held_out=0, **given)
    assert experiment(**given)
    assert Experiment(model="m", data={"path": "d", "validation": "e"}, run="r", validation=given)


def test_prompts_need_no_rows():
    assert experiment(held_out=0, prompts=["Who is there?"]).validation.prompts == ("Who is there?",)


def test_rows_to_measure_with_are_not_named_here():
    with pytest.raises(ConfigError, match=r"data\.validation"):
        read_experiment(None, [parse_setting(text) for text in ("model=m", "data=d", "run=r", "validation=rows.jsonl")])


def test_a_spec_that_was_written_down_is_read_again():
    spec = experiment(by="bleu", scores=["exact", "bleu"], answers=4, keep="best", prompts=["a", "b"])
    assert Experiment(**spec.model_dump(mode="json")) == spec
    assert spec.validation.metrics == ("bleu", "exact")


@given(st.integers(1, 10**5), COUNTS, COUNTS, st.integers(0, 10**4))
def test_what_nobody_asked_for_reads_a_fifth_of_what_is_trained_on_at_most(steps, trained, read, written):
    interval = ValidationConfig().interval(steps, trained, read, written)
    between = len(range(interval, steps, interval))
    assert between < TIMES
    assert between * (read + WRITTEN_TOKEN * written) <= READ_SHARE * trained


@given(st.integers(1, 10**5), COUNTS, COUNTS)
def test_whoever_wants_a_choice_gets_about_ten_validations_and_whoever_names_an_interval_that_one(steps, trained, read):
    for spec in (ValidationConfig(keep="best"), ValidationConfig(patience=3)):
        interval = spec.interval(steps, trained, read, 0)
        assert interval == -(-steps // TIMES)
        assert ValidationConfig(keep="best", steps=interval + 1).interval(steps, trained, read, 0) == interval + 1
