"""A config is frozen, refuses unknown keys and values out of range, and reports every problem in one ConfigError."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kit.sampling import draws
from rankwise.config.adapters import LoraConfig
from rankwise.config.base import shown
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.images import ImagesConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import ConfigError, RankwiseError

SPECS = {
    LoraConfig: {},
    TrainingConfig: {},
    GenerationConfig: {},
    ModelConfig: {"name": "m"},
    DataConfig: {"path": "d"},
    Experiment: {"model": "m", "data": "d", "run": "r"},
}


def refused(spec, **values):
    with pytest.raises(ConfigError) as caught:
        spec(**SPECS[spec] | values)
    return caught.value.problems


@pytest.mark.parametrize("spec", list(SPECS))
def test_a_spec_cannot_be_changed(spec):
    made = spec(**SPECS[spec])
    for name in spec.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, getattr(made, name))
        with pytest.raises(ValidationError, match="frozen"):
            delattr(made, name)


@pytest.mark.parametrize("spec", list(SPECS))
def test_an_unknown_setting_is_refused_with_the_nearest_name(spec):
    for name in spec.model_fields:
        [problem] = refused(spec, **{f"{name}x": 1})
        assert problem.startswith(f'unknown setting "{name}x".')
        assert f'Did you mean "{name}"?' in problem


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (LoraConfig, "rank"),
        (TrainingConfig, "steps"),
        (TrainingConfig, "batch_size"),
        (TrainingConfig, "max_batch_tokens"),
        (TrainingConfig, "seed"),
        (DataConfig, "max_length"),
        (DataConfig, "seed"),
        (GenerationConfig, "max_new_tokens"),
        (GenerationConfig, "seed"),
    ],
)
def test_a_count_is_a_whole_number_and_neither_a_boolean_nor_text(spec, name):
    assert getattr(spec(**SPECS[spec] | {name: 3}), name) == 3
    for value in (True, False, 3.0, 3.5, "3", -1, None if name != "steps" else "x", [3]):
        [problem] = refused(spec, **{name: value})
        assert problem.startswith(f'setting "{name}" is {shown(value)}: ')


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (LoraConfig, "alpha"),
        (LoraConfig, "dropout"),
        (LoraConfig, "layers"),
        (TrainingConfig, "epochs"),
        (TrainingConfig, "learning_rate"),
        (TrainingConfig, "warmup"),
        (TrainingConfig, "weight_decay"),
        (TrainingConfig, "clip"),
        (GenerationConfig, "temperature"),
        (GenerationConfig, "top_p"),
    ],
)
def test_a_boolean_is_no_number(spec, name, value):
    # `clip: true` meant 1.0, and `dropout: false` looked like it had been understood
    assert refused(spec, **{name: [value] if name == "layers" else value})


FLOATS = [
    (LoraConfig, "alpha", [1e-9, 1e6], [0, -1, 1.1e6]),
    (LoraConfig, "dropout", [0, 0.999], [-0.1, 1]),
    (TrainingConfig, "epochs", [0.01, 1000], [0, -1, 1001]),
    (TrainingConfig, "learning_rate", [1e-9, 10, "auto"], [0, -1, 10.1, "Auto"]),
    (TrainingConfig, "warmup", [0, 0.99], [-0.1, 1]),
    (TrainingConfig, "weight_decay", [0, 0.99], [-0.1, 1]),
    (TrainingConfig, "clip", [1e-9, 1e9], [0, -1]),
    (GenerationConfig, "temperature", [0, 10], [-0.1, 10.1]),
    (GenerationConfig, "top_p", [0.01, 1], [0, 1.1]),
]


@pytest.mark.parametrize(("spec", "name", "good", "bad"), FLOATS)
def test_a_number_out_of_its_range_or_not_finite_is_refused(spec, name, good, bad):
    for value in good:
        assert getattr(spec(**{name: value}), name) == value
    for value in (*bad, math.nan, math.inf, -math.inf):
        assert all(f'"{name}" is {shown(value)}: ' in problem for problem in refused(spec, **{name: value}))


@pytest.mark.parametrize(
    ("spec", "name", "good", "bad"),
    [
        (ModelConfig, "name", ["x", "a/b"], ["", 3, None]),
        (ModelConfig, "dtype", ["auto", "float32", "bfloat16"], ["float16", "", None]),
        (ModelConfig, "device", ["auto", "cpu", "mps", "cuda", "cuda:12"], ["cuda:", "cuda:x", "CPU", "cpu\n", " cpu"]),
        (
            ModelConfig,
            "trust_code",
            [None, "0123456789abcdef" * 2 + "01234567"],
            ["main", "a" * 39, "A" * 40, "g" * 40],
        ),
        (DataConfig, "path", ["x"], ["", 3]),
        (DataConfig, "format", ["auto", "messages", "prompt", "alpaca"], ["chat", None]),
        (DataConfig, "system", [None, "", "x"], [3, ["x"]]),
        (DataConfig, "packing", [False, True], ["maybe", None]),
        (TrainingConfig, "schedule", ["linear", "cosine", "constant"], ["step", None]),
        (LoraConfig, "rank", [1, 4096], [0, 4097]),
    ],
)
def test_a_word_that_is_not_known_is_refused(spec, name, good, bad):
    for value in good:
        assert getattr(spec(**SPECS[spec] | {name: value}), name) == value
    for value in bad:
        assert all(f'"{name}" is {shown(value)}: ' in problem for problem in refused(spec, **{name: value}))


@pytest.mark.parametrize("name", ["r", "R2.d-2_x", "a" * 64, "1", "a..b"])
def test_a_run_may_be_called_by_letters_digits_and_three_signs(name):
    assert Experiment(model="m", data="d", run=name).run == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        ".hidden",
        "-x",
        "_x",
        "a b",
        "a\n",
        "a\0",
        "é",
        "a" * 65,
        "~",
        3,
        None,
    ],
)
def test_a_run_name_that_could_leave_its_folder_is_refused(name):
    [problem] = refused(Experiment, run=name)
    assert problem.startswith('setting "run" is ')


def test_wrong_values_in_python_are_one_error_of_ours_with_every_problem():
    with pytest.raises(RankwiseError) as caught:
        Experiment(model="", data={"path": "d", "held_out": -1}, run="..", adapter={"rank": 0, "rnk": 1})
    error = caught.value
    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert len(error.problems) == 5
    assert str(error) == "\n".join(error.problems)
    for key in ("model.name", "data.held_out", "run", "adapter.rank", "adapter.rnk"):
        assert sum(f'"{key}"' in problem for problem in error.problems) == 1


def test_nothing_given_is_told_for_each_required_setting():
    with pytest.raises(ConfigError) as caught:
        Experiment()
    assert caught.value.problems == [
        f'setting "{key}" is required and was not given.' for key in ("model", "data", "run")
    ]


def test_a_model_and_data_may_be_their_name_alone():
    short = Experiment(model="m", data="d", run="r")
    assert short == Experiment(model=ModelConfig(name="m"), data=DataConfig(path="d"), run="r")


def test_epochs_and_steps_together_are_a_contradiction():
    [problem] = refused(TrainingConfig, epochs=1, steps=2)
    assert "epochs and steps" in problem.lower()
    assert "give one" in problem and '""' not in problem
    [problem] = refused(Experiment, training={"epochs": 1, "steps": 2})
    assert '"training"' in problem


def test_a_seed_that_no_generator_takes_is_refused():
    # torch takes 64 bits; a larger seed passed here and ended in torch's own error after the model was loaded
    assert TrainingConfig(seed=2**63 - 1).seed == 2**63 - 1
    assert refused(TrainingConfig, seed=2**64)
    assert refused(GenerationConfig, seed=2**64)


@pytest.mark.parametrize(
    ("training", "rows", "steps"),
    [
        ({}, 100, 13),  # two passes of 100 rows, 16 at a time: 12.5, rounded up so that no row is missed
        ({"epochs": 1}, 8, 1),  # a step of 8 rows: none is taken twice in it
        ({"epochs": 1, "batch_size": 8}, 400, 50),
        ({"epochs": 0.5, "batch_size": 8}, 400, 25),
        ({"epochs": 1}, 1, 1),
        ({"epochs": 0.001}, 10, 1),
        ({"steps": 7}, 1000, 7),
        ({"steps": 7, "batch_size": 1}, 1, 7),
    ],
)
def test_the_steps_are_those_given_or_the_passes_over_the_rows(training, rows, steps):
    assert TrainingConfig(**training).total_steps(rows) == steps


NAMES = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9_-])?\Z")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
EXPERIMENTS = st.builds(
    dict,
    model=st.fixed_dictionaries(
        {"name": WORDS}, optional={"revision": WORDS, "dtype": st.just("float32"), "device": st.just("cuda:1")}
    ),
    data=st.fixed_dictionaries(
        {"path": WORDS}, optional={"system": WORDS, "max_length": st.integers(1, 10**9), "format": st.just("prompt")}
    ),
    run=NAMES,
    adapter=st.fixed_dictionaries(
        {},
        optional={
            "rank": st.integers(1, 4096),
            "alpha": st.floats(1e-3, 1e6),
            "dropout": st.floats(0, 0.99),
            "targets": st.lists(WORDS, min_size=1, max_size=3),
            "layers": st.lists(st.integers(0, 99), max_size=4),
            "rank_pattern": st.dictionaries(WORDS, st.integers(1, 4096), max_size=2),
            "alpha_pattern": st.dictionaries(WORDS, st.floats(1e-3, 1e6), max_size=2),
        },
    ),
    training=st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.floats(0.01, 1000),
            "learning_rate": st.floats(1e-9, 10) | st.just("auto"),
            "seed": st.integers(0, 2**63 - 1),
            "schedule": st.sampled_from(["linear", "cosine", "constant"]),
            "clip": st.floats(1e-3, 1e9),
            "warmup": st.floats(0, 0.99),
        },
    ),
)


@settings(max_examples=draws(80), deadline=None)
@given(values=EXPERIMENTS)
def test_an_experiment_written_as_json_and_read_again_is_the_same(values):
    experiment = Experiment(**values)
    text = json.dumps(experiment.model_dump(mode="json"), allow_nan=False)
    assert Experiment(**json.loads(text)) == experiment
    for part, given_ in values.items():
        if isinstance(given_, dict):
            for key, value in given_.items():
                held = getattr(getattr(experiment, part), key)
                assert (list(held) if isinstance(held, tuple) else held) == value


def test_a_value_that_may_be_a_number_or_a_word_has_one_problem():
    with pytest.raises(ConfigError) as caught:
        ImagesConfig(size=10)
    assert caught.value.problems == [
        'setting "size" is 10: input should be greater than or equal to 16, or \'auto\'.'
    ]  # fmt: skip
