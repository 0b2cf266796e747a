"""Which rows: one source or several, with what belongs to each; a contradiction is told with its file:line or flag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config.base import shown
from rankwise.config.data import DataConfig, Reading, SourceConfig, ValidationDataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.reading import Setting, parse_setting, read_data, read_experiment
from rankwise.config.recipe import RECIPES
from rankwise.errors import ConfigError

BOTH_OR_NEITHER = "a path, or several sources"


def problems(spec=DataConfig, **values):
    with pytest.raises(ConfigError) as caught:
        spec(**values)
    return caught.value.problems


def test_a_path_alone_is_the_whole_of_a_source_wherever_one_is_wanted():
    assert Experiment(model="m", run="r", data="d").data == DataConfig(path="d")
    assert Experiment(model="m", run="r", data=Path("d")).data == DataConfig(path="d")
    spec = DataConfig(sources=["a", Path("b"), {"path": "c"}, SourceConfig(path="d")], validation=Path("e"))
    assert spec.sources == tuple(SourceConfig(path=name) for name in "abcd")
    assert spec.validation == ValidationDataConfig(path="e")


HOW = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from(["messages", "alpaca", "text"]),
        "columns": st.sampled_from([{}, {"prompt": "q"}, {"answer": "q"}, {"prompt": "q", "answer": "a"}]),
        "labels": st.lists(st.sampled_from(["yes", "no"]), max_size=2),
        "split": st.sampled_from(["train", "test"]),
        "rows": st.integers(1, 10**6),
        "licence": st.sampled_from(["MIT", "own"]),
        "subset": st.just("en"),
        "revision": st.just("main"),
    },
)
APART = st.builds(lambda name, how: {"path": f"hub:{name}"} | how, st.sampled_from(["o/a", "o/b"]), HOW)
SOURCE = st.builds(
    lambda place, weight: place | weight, APART, st.fixed_dictionaries({}, optional={"weight": st.floats(0.01, 100)})
)
ELSE = st.fixed_dictionaries(
    {},
    optional={
        "system": st.sampled_from(["", "Be kind."]),
        "max_length": st.integers(1, 10**6),
        "too_long": st.sampled_from(["drop", "truncate", "cut-prompt", "split"]),
        "learned": st.sampled_from(["answers", "everything"]),
        "answers": st.sampled_from(["together", "apart"]),
        "packing": st.booleans(),
        "on_bad_row": st.sampled_from(["stop", "skip"]),
        "seed": st.integers(0, 2**63 - 1),
        "recipe": st.sampled_from(RECIPES),
    },
)
MEASURED = st.one_of(st.just({}), st.builds(dict, held_out=st.integers(0, 99)), st.builds(dict, validation=APART))
ONE = st.builds(lambda how, rest, measured: {"path": "hub:o/d"} | how | rest | measured, HOW, ELSE, MEASURED)
SEVERAL = st.builds(
    lambda sources, rest, measured: {"sources": sources} | rest | measured,
    st.lists(SOURCE, min_size=1, max_size=3), ELSE, MEASURED,
)  # fmt: skip


@settings(max_examples=draws(80), deadline=None)
@given(how=HOW, rest=ELSE)
def test_one_source_and_a_list_of_that_one_are_read_alike(how, rest):
    one, several = DataConfig(path="hub:o/d", **how, **rest), DataConfig(sources=[{"path": "hub:o/d", **how}], **rest)
    assert one.all_sources == several.all_sources == several.sources
    assert all(getattr(one.all_sources[0], name) == getattr(one, name) for name in Reading.model_fields)
    assert one.all_sources[0].weight == 1.0


@settings(max_examples=draws(100), deadline=None)
@given(values=ONE | SEVERAL)
def test_what_was_asked_of_rows_is_read_back_equal_from_json(values):
    spec = DataConfig(**values)
    assert DataConfig(**json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_rows_are_named_by_a_path_or_by_sources_and_not_by_both_or_neither():
    for values in ({}, {"path": "a", "sources": ["b"]}, {"sources": []}, {"path": None, "sources": ()}):
        [problem] = problems(**values)
        assert BOTH_OR_NEITHER in problem


@pytest.mark.parametrize("name", Reading.model_fields)
def test_what_belongs_to_a_source_is_refused_beside_several(name):
    value = {
        "columns": {"prompt": "q"}, "labels": ["a"], "rows": 3, "format": "text", "prompt": "{q}", "completion": "{a}",
        "alternatives": "each", "delimiter": ";", "encoding": "cp1252", "ignore_columns": ["x"],
    }.get(name, "x")  # fmt: skip
    pair = {"prompt": {"completion": "{a}"}, "completion": {"prompt": "{q}"}}.get(name, {})
    [problem] = problems(sources=["a", "b"], **{name: value} | pair)
    assert "sources" in problem and (name in problem.lower() or pair) and "each" in problem
    path = "hub:o/d" if name in ("subset", "revision") else "a"
    assert getattr(DataConfig(sources=[{"path": path, name: value} | pair]).sources[0], name) is not None


@pytest.mark.parametrize("name", ["subset", "revision"])
def test_a_file_has_no_subset_and_no_revision(name):
    for path in ("rows.jsonl", "folder", "hubs:o/d", "./hub:o"):
        for values in ({"path": path, name: "x"}, {"sources": [{"path": path, name: "x"}]},
                       {"path": "a", "validation": {"path": path, name: "x"}}):  # fmt: skip
            [problem] = problems(**values)
            assert "hub data set" in problem and name in problem
    assert getattr(DataConfig(path="hub:o/d", **{name: "x"}).all_sources[0], name) == "x"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("too_long", ["drop", "truncate", "cut-prompt", "split"], ["cut", None, 3]),
        ("learned", ["answers", "everything"], ["all", None]),
        ("answers", ["together", "apart"], ["", None]),
        ("on_bad_row", ["stop", "skip"], ["ignore", None]),
        ("max_length", [1, 10**9], [0, -1, 2.5, True, "512"]),
        ("rows", [None, 1], [0, 2.0, True]),
        ("seed", [0, 2**63 - 1], [-1, 2**63, 1.0]),
        ("recipe", [None, *RECIPES], ["alpca", "", 3]),
    ],
)
def test_a_value_that_is_not_known_is_refused_by_name(name, good, bad):
    for value in good:
        assert getattr(DataConfig(path="a", **{name: value}), name) == value
    for value in bad:
        assert all(f'"{name}" is {shown(value)}: ' in problem for problem in problems(path="a", **{name: value}))


@pytest.mark.parametrize("weight", [0, -1, 101, True, "x", float("nan")])
def test_a_weight_is_a_share_or_a_multiple_of_a_pass(weight):
    assert SourceConfig(path="a", weight=0.01).weight == 0.01 and SourceConfig(path="a", weight=100).weight == 100
    [problem] = problems(SourceConfig, path="a", weight=weight)
    assert problem.startswith('setting "weight" is ')


@pytest.mark.parametrize("weight", [1.0, 2])
def test_what_is_measured_once_has_no_weight(weight):
    # a setting without effect may not exist; it was taken and passed over
    [problem] = problems(path="a", validation={"path": "b", "weight": weight})
    assert 'unknown setting "validation.weight"' in problem


# On the command line: files, and settings with their flags


def read(files, *settings_):
    return read_data(files, [one if isinstance(one, Setting) else parse_setting(one) for one in settings_])


def refused(files, *settings_):
    with pytest.raises(ConfigError) as caught:
        read(files, *settings_)
    return caught.value.problems


def test_files_named_are_one_source_or_several_and_settings_go_to_each():
    assert read(["a"]) == DataConfig(path="a")
    assert read(["a", "b"]) == DataConfig(sources=["a", "b"])
    settings_ = ("data.columns.prompt=q", "data.rows=3", "data.max_length=7")
    assert read(["a"], *settings_) == DataConfig(path="a", columns={"prompt": "q"}, rows=3, max_length=7)
    each = {"columns": {"prompt": "q"}, "rows": 3}
    several = read(["a", "b"], *settings_)
    assert several == DataConfig(sources=[{"path": "a"} | each, {"path": "b"} | each], max_length=7)
    assert read(["a"], "data.rows=3", Setting("data.rows", 4, "--rows")).rows == 4, "the later wins"


@pytest.mark.parametrize("files", [["a"], ["a", "b"]], ids=len)
def test_a_setting_that_is_none_of_rows_is_refused_with_its_flag(files):
    for text, name in (
        ("training.epochs=3", "training"),
        ("model=m", "model"),
        ("run=r", "run"),
        ("packing=true", "packing"),
    ):
        [problem] = refused(files, text)
        assert "--set" in problem and f'"{name}"' in problem and "data." in problem


@pytest.mark.parametrize("files", [["a"], ["a", "b"]], ids=len)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data.max_length=0", "max_length"),
        ("data.maxlength=5", "maxlength"),
        ("data.recipe=alpca", "alpca"),
        ("data.format=nonsense", "nonsense"),
        ("data.columns=3", "columns"),
        ("data.rows=0", "rows"),
        ("data.validation={path: b, weight: 0}", "weight"),
        ("data.validation={path: b, revision: main}", "revision"),
    ],
)
def test_each_problem_of_rows_named_on_a_command_line_names_its_flag(files, text, said):
    for problem in refused(files, text):
        assert f"--set {text.partition('=')[0]}: " in problem and said in problem


@pytest.mark.parametrize("files", [["a"], ["a", "b"]], ids=len)
def test_a_contradiction_of_two_flags_names_one_of_them(files):
    [problem] = refused(
        files, Setting("data.held_out", 2, "--held-out"), Setting("data.validation", "b", "--validation-data")
    )
    assert "--held-out" in problem or "--validation-data" in problem
    assert "held_out" in problem and "validation" in problem


@pytest.mark.parametrize("files", [["a"], ["a", "b"]], ids=len)
@pytest.mark.parametrize("value", ["x", "[a]", "3", "null", "true"])
def test_rows_as_a_whole_cannot_be_set_beside_files_that_are_named(files, value):
    # was a TypeError with its traceback
    [problem] = refused(files, f"data={value}")
    assert "--set data" in problem


@pytest.mark.parametrize("text", ["data.path=b", "data.sources=[b]"])
@pytest.mark.parametrize("files", [["a"], ["a", "c"]], ids=len)
def test_other_rows_than_those_named_are_refused_and_not_read_in_their_place(files, text):
    for problem in refused(files, text):
        assert f"--set {text.partition('=')[0]}" in problem


# In a file of settings


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("data:\n  held_out: 2\n", 3, BOTH_OR_NEITHER),
        ("data:\n  path: a\n  sources: [b]\n", 3, BOTH_OR_NEITHER),
        ("data:\n  sources: [a, b]\n  format: text\n", 3, "write format in each of them"),
        ("data:\n  path: a\n  held_out: 2\n  validation: b\n", 3, "validation"),
        ("data:\n  path: a\n  subset: en\n", 3, "hub data set"),
        ("data:\n  path: a\n  validation:\n    path: b\n    revision: main\n", 5, "hub data set"),
        ("data:\n  sources:\n    - path: a\n      weight: 0\n", 6, "weight"),
        ("data:\n  sources:\n    - a\n    - path: b\n      rowz: 3\n", 7, "rowz"),
        ("data:\n  path: a\n  recipe: alpca\n", 5, "alpaca"),
        ("data:\n  path: a\n  too_long: cut\n", 5, "'truncate'"),
        ("data:\n  path: a\n  columns: [x]\n", 5, "columns"),
    ],
)
def test_each_problem_of_a_file_names_its_line(tmp_path, text, line, said):
    file = tmp_path / "lora.yaml"
    file.write_text("model: m\nrun: r\n" + text)
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    [problem] = caught.value.problems
    assert problem.startswith(f"{file}:{line}: ") and said in problem


def test_a_flag_laid_over_a_file_answers_for_itself(tmp_path):
    file = tmp_path / "lora.yaml"
    file.write_text("model: m\nrun: r\ndata: rows.jsonl\n")
    assert read_experiment(file, [parse_setting("data.recipe=dolly")]).data == DataConfig(
        path="rows.jsonl", recipe="dolly"
    )
    with pytest.raises(ConfigError) as caught:
        read_experiment(file, [Setting("data.recipe", "doly", "--recipe")])
    assert caught.value.problems[0].startswith('--recipe: setting "data.recipe" is ')
