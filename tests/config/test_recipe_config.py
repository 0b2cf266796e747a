"""A recipe's settings lie under what the user gives, in whichever way it was given; nothing of the user's is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config.adapters import LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.reading import Setting, parse_setting, read_experiment
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError
from rankwise.runs.directory import ClaimedRun
from rankwise.runs.own_files import read_json

NAMES = st.sampled_from(RECIPES)
DATA = st.fixed_dictionaries(
    {},
    optional={
        "max_length": st.integers(1, 5000),
        "too_long": st.sampled_from(["drop", "truncate", "cut-prompt", "split"]),
        "learned": st.sampled_from(["answers", "everything"]),
        "packing": st.booleans(),
        "seed": st.integers(0, 9),
    },
)
TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 500),
        "learning_rate": st.floats(1e-6, 1) | st.just("auto"),
        "schedule": st.sampled_from(["linear", "cosine", "constant"]),
        "warmup": st.floats(0, 0.9),
        "clip": st.floats(0.1, 9),
        "seed": st.integers(0, 9),
    },
)
LENGTH = st.sampled_from([{}, {"epochs": 2.5}, {"epochs": 2.0}, {"steps": 7}])
ADAPTER = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 64),
        "alpha": st.integers(1, 64),
        "dropout": st.sampled_from([0.0, 0.1]),
        "targets": st.sampled_from(["all-linear", "k_proj"]),
    },
)
GIVEN = st.tuples(NAMES, DATA, st.builds(lambda one, other: one | other, TRAINING, LENGTH), ADAPTER)


def held(spec: Any, given_: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(spec, key) for key in given_}


def laid_over(name, data, training, adapter):
    """What should be asked, put together here."""
    under = recipe_named(name).settings
    of_training = under.get("training", {})
    if "steps" in training:
        of_training = {key: value for key, value in of_training.items() if key != "epochs"}
    return (
        DataConfig(**{"path": "d", "recipe": name} | under.get("data", {}) | data),
        TrainingConfig(**of_training | training),
        LoraConfig(**under.get("adapter", {}) | adapter),
    )


@settings(max_examples=draws(100), deadline=None)
@given(name=NAMES, data=DATA)
def test_what_is_given_of_rows_wins_over_the_recipe_and_the_recipe_over_the_defaults(name, data):
    spec = DataConfig(path="d", recipe=name, **data)
    under = {"held_out": 0} | recipe_named(name).settings.get("data", {})
    plain = DataConfig(path="d")
    for key in DataConfig.model_fields:
        wanted = data.get(key, under.get(key, getattr(plain, key)))
        assert getattr(spec, key) == ({"path": "d", "recipe": name}.get(key, wanted))
    assert DataConfig(**spec.model_dump()) == spec


@settings(max_examples=draws(150), deadline=None)
@given(asked=GIVEN)
def test_mappings_and_specs_mean_the_same(asked):
    name, data, training, adapter = asked
    wanted = laid_over(name, data, training, adapter)
    as_mappings = Experiment(
        model="m", run="r", data={"path": "d", "recipe": name} | data, training=training, adapter=adapter
    )
    as_specs = Experiment(
        model=ModelConfig(name="m"), run="r", data=DataConfig(path="d", recipe=name, **data),
        training=TrainingConfig(**training), adapter=LoraConfig(**adapter),
    )  # fmt: skip
    mixed = Experiment(
        model="m",
        run="r",
        data=DataConfig(path="d", recipe=name, **data),
        training=training,
        adapter=LoraConfig(**adapter),
    )
    for experiment in (as_mappings, as_specs, mixed):
        assert (experiment.data, experiment.training, experiment.adapter) == wanted
    assert as_mappings == as_specs == mixed


@settings(max_examples=draws(60), deadline=None)
@given(asked=GIVEN, data=st.data())
def test_a_file_flags_and_set_mean_the_same_in_whichever_of_them_a_setting_stands(tmp_path_factory, asked, data):
    name, of_data, training, adapter = asked
    keys = {"model": "m", "run": "r", "data.path": "d", "data.recipe": name}
    for part, values in (("data", of_data), ("training", training), ("adapter", adapter)):
        keys |= {f"{part}.{key}": value for key, value in values.items()}
    where = {key: data.draw(st.sampled_from(["file", "flag", "set"]), label=key) for key in keys}
    tree: dict[str, Any] = {}
    for key in keys:
        if where[key] == "file":
            *parents, last = key.split(".")
            inside = tree
            for parent in parents:
                inside = inside.setdefault(parent, {})
            inside[last] = keys[key]
    file = tmp_path_factory.mktemp("yaml") / "lora.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    flags = [Setting(key, value, f"--{key}") for key, value in keys.items() if where[key] == "flag"]
    flags += [parse_setting(f"{key}={json.dumps(value)}") for key, value in keys.items() if where[key] == "set"]
    experiment = read_experiment(file, flags)
    assert (experiment.data, experiment.training, experiment.adapter) == laid_over(name, of_data, training, adapter)


@settings(max_examples=draws(60), deadline=None)
@given(asked=GIVEN)
def test_the_spec_of_a_run_is_read_back_equal(tmp_path_factory, asked):
    name, data, training, adapter = asked
    experiment = Experiment(
        model="m", run="r", data={"path": "d", "recipe": name} | data, training=training, adapter=adapter
    )
    assert Experiment(**json.loads(json.dumps(experiment.model_dump(mode="json")))) == experiment
    run = ClaimedRun(tmp_path_factory.mktemp("runs"))
    run.begin(experiment.model_dump(mode="json"))
    assert read_json(run.folder / "config.json", Experiment) == experiment


@pytest.mark.parametrize("name", RECIPES)
def test_steps_that_are_given_take_the_place_of_the_recipes_epochs(name):
    epochs = recipe_named(name).settings.get("training", {}).get("epochs")
    for training in ({"steps": 9}, TrainingConfig(steps=9), {"steps": 9, "epochs": None}):
        spec = Experiment(model="m", run="r", data={"path": "d", "recipe": name}, training=training).training
        assert (spec.steps, spec.epochs) == (9, None)
    untouched = Experiment(model="m", run="r", data={"path": "d", "recipe": name}).training
    assert (untouched.steps, untouched.epochs) == (None, epochs)
    with pytest.raises(ConfigError, match="epochs and steps"):
        Experiment(model="m", run="r", data={"path": "d", "recipe": name}, training={"steps": 9, "epochs": 2})


@pytest.mark.parametrize("name", RECIPES)
def test_what_was_not_said_when_a_spec_was_made_is_not_said_now(name):
    bare = Experiment(model="m", run="r", data={"path": "d", "recipe": name})
    specs = Experiment(
        model="m", run="r", data={"path": "d", "recipe": name}, training=TrainingConfig(), adapter=LoraConfig()
    )
    assert bare == specs
    # what was said stays, also where it is what a default would say
    default = TrainingConfig()
    said = TrainingConfig(batch_size=default.batch_size, schedule=default.schedule)
    kept = Experiment(model="m", run="r", data={"path": "d", "recipe": name}, training=said).training
    assert (kept.batch_size, kept.schedule) == (default.batch_size, default.schedule)


def test_without_a_recipe_nothing_lies_underneath():
    experiment = Experiment(model="m", run="r", data="d")
    assert (experiment.data, experiment.training, experiment.adapter) == (
        DataConfig(path="d"),
        TrainingConfig(),
        LoraConfig(),
    )


UNKNOWN = ["alpca", "Alpaca", "", "../alpaca", "alpaca.yaml"]


@pytest.mark.parametrize("name", [*UNKNOWN, 3, ["alpaca"], {"alpaca": 1}, True])
def test_a_recipe_that_is_not_known_is_refused_and_the_known_ones_are_named(name):
    for make in (
        lambda: DataConfig(path="d", recipe=name),
        lambda: Experiment(model="m", run="r", data={"path": "d", "recipe": name}),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        [problem] = caught.value.problems
        assert 'recipe" is ' in problem
        assert not isinstance(name, str) or all(known in problem for known in RECIPES)


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_an_unknown_recipe_was_written_is_told(tmp_path, name):
    file = tmp_path / "lora.yaml"
    file.write_text(f"model: m\nrun: r\ndata:\n  path: d\n  recipe: '{name}'\n")
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    assert caught.value.problems[0].startswith(f'{file}:5: setting "data.recipe" is {name!r}: ')
    with pytest.raises(ConfigError) as caught:
        read_experiment(file, [Setting("data.recipe", name, "--recipe")])
    assert caught.value.problems[0].startswith("--recipe: ")
    with pytest.raises(ConfigError) as caught:
        read_experiment(file, [parse_setting(f"data.recipe='{name}'")])
    assert caught.value.problems[0].startswith("--set data.recipe: ")


@pytest.mark.parametrize("part", ["data", "training", "adapter"])
def test_a_wrong_setting_beside_a_recipe_is_told_with_its_line_as_without_one(tmp_path, part):
    key, value = {"data": ("max_length", 0), "training": ("batch_size", 0), "adapter": ("rank", 0)}[part]
    for unknown, said in ((key, f'setting "{part}.{key}" is 0'), ("nonsense", f'unknown setting "{part}.nonsense"')):
        file = tmp_path / "lora.yaml"
        lines = ["model: m", "run: r", f"{part}:", f"  {unknown}: {value}"]
        lines += ["  path: d"] if part == "data" else ["data:", "  path: d"]
        file.write_text("\n".join([*lines, "  recipe: alpaca"]))
        with pytest.raises(ConfigError) as caught:
            read_experiment(file)
        [problem] = caught.value.problems
        assert problem.startswith(f"{file}:4: {said}")


@pytest.mark.parametrize("given_", [3, "fast", ["rank"], None])
@pytest.mark.parametrize("part", ["training", "adapter"])
def test_a_part_that_is_no_mapping_is_told_and_no_accident(part, given_):
    values = {"model": "m", "run": "r", "data": {"path": "d", "recipe": "alpaca"}, part: given_}
    if given_ is None:
        assert Experiment(**values) == Experiment(**{key: value for key, value in values.items() if key != part})
        return
    with pytest.raises(ConfigError) as caught:
        Experiment(**values)
    assert any(f'"{part}"' in problem for problem in caught.value.problems)
