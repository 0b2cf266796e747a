"""A file of settings means what it says; whatever is wrong in it is told at once, each with file and line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config import reading
from rankwise.config.experiment import Experiment
from rankwise.config.reading import Setting, parse_setting, read_experiment
from rankwise.errors import ConfigError

BASE = "model: m\ndata: d\nrun: r\n"


@pytest.fixture
def read(tmp_path):
    """Read settings from text (or bytes), and from --set flags after it."""

    def read(text, *flags):
        file = tmp_path / "lora.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_experiment(file, [parse_setting(flag) for flag in flags])

    return read


@pytest.fixture
def problems(read, tmp_path):
    """What a file is refused with, line by line, its folder cut off."""

    def problems(text, *flags):
        with pytest.raises(ConfigError) as caught:
            read(text, *flags)
        assert str(caught.value) == "\n".join(caught.value.problems)
        return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return problems


def test_a_small_file_is_read_and_the_rest_is_default(read):
    assert read(BASE) == Experiment(model={"name": "m"}, data={"path": "d"}, run="r")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", "+1e-4"])
def test_a_number_in_any_notation_is_a_number(read, text):
    # by YAML 1.1's rules `1e-4` is text
    rate = read(f"{BASE}training:\n  learning_rate: {text}\n").training.learning_rate
    assert rate == 1e-4
    assert read(BASE, f"training.learning_rate={text}").training.learning_rate == 1e-4


def test_words_that_were_once_booleans_are_words(read):
    experiment = read("model: on\ndata: no\nrun: yes\n")
    assert (experiment.model.name, experiment.data.path, experiment.run) == ("on", "no", "yes")


def test_a_leading_zero_is_no_octal_and_a_day_is_a_name(read):
    assert read(BASE, "training.steps=010").training.steps == 10
    assert read("model: m\ndata: d\nrun: 2024-01-02\n").run == "2024-01-02"


def test_a_duplicate_key_is_an_error_with_its_line(problems):
    [problem] = problems(f"{BASE}training:\n  clip: 1.0\n  clip: 2.0\n")
    assert problem.startswith("lora.yaml:6: ")
    assert "duplicate" in problem
    assert "clip" in problem


@pytest.mark.parametrize(
    ("text", "line", "found", "meant"),
    [
        ("modl: x\n" + BASE, 1, "modl", "model"),
        (BASE + "adapter:\n  rank: 4\n  rnak: 4\n", 6, "adapter.rnak", "rank"),
        (BASE + "training: {epochs: 1, sede: 2}\n", 4, "training.sede", "seed"),
        ("model:\n  name: m\n  dtpye: auto\ndata: d\nrun: r\n", 3, "model.dtpye", "dtype"),
        ("data:\n  path: d\n  max_lenght: 3\nmodel: m\nrun: r\n", 3, "data.max_lenght", "max_length"),
        (BASE + "training: {products: int8}\n", 4, "training.products", "matmul"),  # as it was called
    ],
)
def test_an_unknown_key_is_told_with_line_and_nearest_name(problems, text, line, found, meant):
    [problem] = problems(text)
    assert problem.startswith(f'lora.yaml:{line}: unknown setting "{found}".')
    assert f'Did you mean "{meant}"?' in problem


def test_an_unknown_key_is_told_with_the_keys_known_there(problems):
    [problem] = problems(BASE + "model_: 1\nadapter: {}\n")
    assert problem.endswith(
        "Known here: model, data, objective, classification, preference, images, run, adapter, training, validation, "
        "tracking."
    )
    [problem] = problems(BASE + "adapter: {zzz: 1}\n")
    known = "dropout, targets, layers, method, rank, alpha, rank_pattern, alpha_pattern, start, eva_rho, eva_batches"
    assert problem.endswith(f"Known here: start_from, {known}, scaling, b_rate, dora.")


@pytest.mark.parametrize("key", ["learning-rate", "str", "int", "float", "x[0]"])
def test_an_unknown_key_is_named_however_it_is_spelt(problems, key):
    # the flag is --learning-rate, so this is what people write; it was told as an unknown "training"
    [problem] = problems(f"{BASE}training:\n  {key}: 1\n")
    assert problem.startswith(f'lora.yaml:5: unknown setting "training.{key}".')
    assert "batch_size" in problem


def test_a_pattern_with_a_dash_is_named_in_its_problem(problems):
    [problem] = problems(f"{BASE}adapter:\n  rank_pattern:\n    q-proj: 0\n")
    assert problem.startswith("lora.yaml:6: ")
    assert "q-proj" in problem


def test_all_problems_are_told_at_once_with_their_lines(problems):
    told = problems("data: d\nadapter:\n  rank: 0\n  rnk: 3\ntraining:\n  clip: -1\n", "training.warmup=2")
    assert len(told) == 6
    assert sum(problem.startswith("lora.yaml:3: ") and "adapter.rank" in problem for problem in told) == 1
    assert sum(problem.startswith("lora.yaml:4: ") and "adapter.rnk" in problem for problem in told) == 1
    assert sum(problem.startswith("lora.yaml:6: ") and "training.clip" in problem for problem in told) == 1
    assert sum(problem.startswith("--set training.warmup: ") for problem in told) == 1
    assert {f'setting "{key}" is required and was not given.' for key in ("model", "run")} <= set(told)


def test_a_wrong_value_is_told_with_the_value(problems):
    [problem] = problems(f"{BASE}adapter:\n  rank: four\n")
    assert problem.startswith("lora.yaml:5: setting \"adapter.rank\" is 'four': ")
    assert "integer" in problem


def test_a_long_value_is_shown_short(problems):
    # half a megabyte of text in the wrong place was printed whole
    [problem] = problems(f"model: m\ndata: d\nrun: {'x' * 100_000}\n")
    assert len(problem) < 1000


def test_a_number_too_long_to_print_is_a_problem_and_no_crash(problems):
    # hexadecimal numbers escape the limit on digits when read, and met it when the message was written
    assert "adapter.rank" in problems(f"{BASE}adapter:\n  rank: 0x{'f' * 5000}\n")[0]


OBJECTS = [
    "!!python/object/apply:os.system [ls]",
    "!!python/object/new:os.system [ls]",
    "!!python/name:os.system ''",
    "!!python/object:os.x {rank: 4}",
    "!custom {rank: 4}",
    "!custom [a]",
    "!custom text",
]


@pytest.mark.parametrize("value", OBJECTS)
@pytest.mark.parametrize(
    "place", ["model: m\ndata: d\nrun: {}\n", BASE + "adapter: {}\n", BASE + "training:\n  epochs: {}\n"]
)
def test_a_tag_that_asks_for_an_object_is_refused(problems, place, value):
    # `!!x` is short for `tag:yaml.org,2002:x`, so a check for that prefix lets every object by
    [problem] = problems(place.format(value))
    assert problem.startswith("lora.yaml")
    assert "would create an object" in problem


@pytest.mark.parametrize("value", OBJECTS)
def test_a_tag_in_a_flag_is_refused_too(value):
    with pytest.raises(ConfigError, match=r"--set.*would create an object"):
        parse_setting(f"model={value}")


def test_a_tag_for_a_plain_value_is_plain(read):
    assert read("model: !!str 5\ndata: d\nrun: r\n").model.name == "5"


def test_an_anchor_stands_for_what_it_names(read):
    experiment = read(BASE + "training:\n  epochs: &e 1.5\n  clip: *e\nadapter:\n  targets: &t [q_proj]\n")
    assert experiment.training.epochs == experiment.training.clip == 1.5
    assert experiment.adapter.targets == ("q_proj",)


def test_an_anchor_changes_no_type(problems):
    # a boolean with a name is read as a kind of integer, and `rank: &r true` became rank 1
    [problem] = problems(BASE + "adapter:\n  rank: &r true\n")
    assert "adapter.rank" in problem


def test_a_merged_mapping_is_merged_or_refused_but_no_crash(read, problems):
    # the line of a key that came by `<<` is not where it is looked for: KeyError
    text = BASE + "training: &t\n  seed: 3\nadapter:\n  <<: *t\n  rank: 4\n"
    assert any("adapter.seed" in problem or "<<" in problem for problem in problems(text))


def test_a_mapping_of_nothing_but_a_merged_one_is_that_one(read):
    # without a key of its own it has no lines: AttributeError
    experiment = read(BASE + "training:\n  <<: {batch_size: 3}\nadapter:\n  rank: 4\n  <<: {alpha: 5}\n")
    assert (experiment.training.batch_size, experiment.adapter.rank, experiment.adapter.alpha) == (3, 4, 5)


@pytest.mark.parametrize(
    "text",
    ["adapter: &a\n  targets: *a\n", "adapter:\n  targets: &a [*a]\n", "adapter: &a\n  rank_pattern: {x: *a}\n"],
)
def test_an_alias_to_itself_is_a_problem_and_no_crash(problems, text):
    assert problems(BASE + text)


def test_aliases_of_aliases_do_not_grow_without_end(tmp_path):
    # nine lines of nine aliases each are 400 million values; the limit on processor time stands for "for ever"
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    program = (
        "import resource, pathlib\n"
        "from rankwise.errors import ConfigError\n"
        "from rankwise.config.reading import read_experiment\n"
        "used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (used + 4, used + 5))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try:\n    read_experiment(pathlib.Path('bomb.yaml'))\n"
        "except ConfigError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", f"ended with {done.returncode}: {done.stderr[-300:]}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "contains nothing, not settings of the form key: value"),
        ("- a\n- b\n", "contains a list, not settings of the form key: value"),
        ("just text\n", "contains 'just text', not settings of the form key: value"),
        ("a: [1\nb: 2\n", "lora.yaml:2: "),
        ("a: b: c\n", "lora.yaml:1: "),
        ("a: 1\n---\nb: 1\n", "lora.yaml:2: "),
        ("a: *nowhere\n", "lora.yaml:1: "),
        ("a: \0\n", "is not YAML"),
        ("a: " + "[" * 100_000, "more than 1,000 brackets are open at once"),
        ("a: " + "[" * 150 + "1" + "]" * 150, "is nested more than 100 deep"),
        ("a: " + "9" * 5000, "is not YAML"),
        ("a: 2024-13-45\n", "is not YAML"),
        (BASE.encode() + b"training: \xff\n", "is not UTF-8 text (byte 34)"),
        (BASE.encode("utf-16"), "is not UTF-8 text (byte 0)"),
    ],
    ids=[
        "nothing",
        "list",
        "text",
        "open",
        "nested",
        "two",
        "alias",
        "nul",
        "deep",
        "deep and closed",
        "digits",
        "month",
        "bytes",
        "utf-16",
    ],
)
def test_what_is_no_file_of_settings_is_told_as_such(problems, text, wanted):
    [problem] = problems(text)
    assert problem.startswith("lora.yaml")
    assert wanted in problem
    assert len(problem) < 400


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(read):
    assert read(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode()) == read(BASE)


def test_a_file_over_the_limit_is_refused_by_its_size(problems, read, monkeypatch):
    """At a limit of 2,000, since a comment of a million characters takes seconds to read."""
    monkeypatch.setattr(reading, "LARGEST_FILE", 2000)
    comment = "#" * (2000 - len(BASE))
    assert read(BASE + comment).run == "r"
    [problem] = problems(BASE + comment + "#")
    assert "2,001 bytes" in problem and "2,000 at most" in problem


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    for file in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            read_experiment(file)
        assert str(caught.value).startswith(f"{file}: cannot be read (")


def test_without_a_file_the_flags_are_everything():
    settings_ = [parse_setting(text) for text in ("model=m", "data=d", "run=r")]
    assert read_experiment(None, settings_) == Experiment(model="m", data="d", run="r")


def test_later_flags_win_over_earlier_ones_and_over_the_file(read):
    text = BASE + "training:\n  seed: 1\n  clip: 0.5\n"
    experiment = read(text, "training.seed=2", "training.seed=3")
    assert (experiment.training.seed, experiment.training.clip) == (3, 0.5)


def test_a_whole_branch_can_be_set_at_once(read):
    text = BASE + "training:\n  seed: 1\n  clip: 0.5\n"
    assert read(text, "training={seed: 2}").training == read(BASE, "training.seed=2").training


def test_a_problem_names_the_flag_it_came_by(problems):
    text = BASE + "adapter:\n  rank: 4\n"
    [problem] = problems(text, "adapter.rank=0")
    assert problem.startswith('--set adapter.rank: setting "adapter.rank" is 0: ')
    [problem] = problems(text, "adapter.rnk=1")
    assert problem.startswith('--set adapter.rnk: unknown setting "adapter.rnk". Did you mean "rank"?')
    [problem] = problems("data: d\nrun: r\nmodel: ''\n", "data.held_out=1")
    assert problem.startswith("lora.yaml:3: ")
    with pytest.raises(ConfigError, match=r"^--rank: setting"):
        read_experiment(
            None, [*map(parse_setting, ("model=m", "data=d", "run=r")), Setting("adapter.rank", 0, "--rank")]
        )


def test_a_name_alone_can_be_completed_by_flags(read):
    experiment = read(BASE, "model.dtype=float32", "data.held_out=3")
    assert experiment == Experiment(model={"name": "m", "dtype": "float32"}, data={"path": "d", "held_out": 3}, run="r")
    assert read(BASE, "model.name=other").model.name == "other"
    assert read("model: {name: m, dtype: float32}\ndata: d\nrun: r\n", "model=other").model.dtype == "auto"


def test_a_branch_left_empty_can_be_filled_by_flags(read):
    assert read(BASE + "training:\n", "training.seed=3").training.seed == 3


def test_a_wrong_branch_is_not_hidden_by_a_flag_beneath_it(problems):
    # `training: 5` was dropped without a word when any --set training.… followed
    assert any("training" in problem for problem in problems(BASE + "training: 5\n", "training.seed=3"))


@pytest.mark.parametrize("text", ["", "rank", "=3", ".rank=3", "adapter.=3", "a..b=3"])
def test_a_flag_that_is_no_key_and_value_is_told_with_an_example(text):
    with pytest.raises(ConfigError) as caught:
        parse_setting(text)
    assert f'"{text}"' in str(caught.value)
    assert "key=value" in str(caught.value)


@pytest.mark.parametrize("text", ["training.steps=", "k= "])
def test_a_flag_without_a_value_is_not_taken_for_the_default(text):
    with pytest.raises(ConfigError, match="has no value") as caught:
        parse_setting(text)
    assert f"{text.partition('=')[0]}=null" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=1", 1),
        ("k=1.5", 1.5),
        ("k=true", True),
        ("k=null", None),
        ("k=[a, 2]", ["a", 2]),
        ("k={a: {b: 1}}", {"a": {"b": 1}}),
        ("k='1'", "1"),
        ("k=0-3,7", "0-3,7"),
        ("k=a=b", "a=b"),
        (" k =1", 1),
    ],
)
def test_the_value_of_a_flag_is_read_as_yaml(text, value):
    setting = parse_setting(text)
    assert setting.key == "k"
    assert setting.value == value
    assert type(setting.value) is type(value)


def test_a_flag_whose_value_is_no_yaml_names_the_flag():
    with pytest.raises(ConfigError, match=r"^--set model\.name"):
        parse_setting("model.name=[a")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
TREES = st.recursive(
    SCALARS,
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=8), child, max_size=3),
    max_leaves=12,
)


@settings(max_examples=draws(150), deadline=None)
@given(
    tree=st.dictionaries(
        st.sampled_from(["model", "data", "run", "adapter", "training"]) | st.text(max_size=8), TREES, max_size=5
    )
)
def test_whatever_was_set_the_outcome_is_an_experiment_or_a_told_problem(tree):
    try:
        read_experiment(None, [Setting(key, value, f"--set {key}") for key, value in tree.items()])
    except ConfigError as error:
        assert error.problems
        assert all(isinstance(problem, str) and problem for problem in error.problems)


@settings(max_examples=draws(100), deadline=None)
@given(text=st.text("ab:-[]{}&*!|>#'\"%@\n ,?<=1.", max_size=40))
def test_whatever_a_file_holds_the_outcome_is_an_experiment_or_a_told_problem(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):  # nothing of this alphabet spells the required keys
        read_experiment(file)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (
            "{method: adalora, rank: 4}",
            '"adapter.rank" is a setting of lora and vera, and the method is adalora. Use budget.',
        ),
        ("{method: adalora, b_rate: 4}", '"adapter.b_rate" is a setting of lora, and the method is adalora.'),
        ("{budget: 4}", '"adapter.budget" is a setting of adalora, and the method is lora. Use rank.'),
    ],
)
def test_a_setting_of_the_other_method_is_told_as_such(problems, adapter, said):
    assert problems(f"{BASE}adapter: {adapter}\n") == [f"lora.yaml:4: {said}"]
