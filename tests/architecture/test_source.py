"""Rules for every source file: nothing that runs foreign code, no dead setting, a docstring, a size one can read."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from kit.sources import FILES, TREES
from rankwise import errors
from rankwise.cli.main import app
from rankwise.config.base import Config
from rankwise.config.experiment import Experiment
from rankwise.config.images import ImageProcessing
from rankwise.config.objectives import Suited
from rankwise.config.recipe import RECIPES, Recipe, recipe_named
from rankwise.config.tasks import TaskConfig
from rankwise.config.validation import GenerationConfig

ROOT = Path(__file__).parents[2]
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "peft", "yaml"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "numpy.load", "np.load",
                "torch.jit.load"}  # fmt: skip


def offences(tree):
    """Everything in a file that could run code which somebody else wrote, as `line: what`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, name.name) for name in node.names if name.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in UNSAFE_MODULES:
                found.append((node, node.module))
            found += [
                (node, f"{node.module}.{n.name}") for n in node.names if f"{node.module}.{n.name}" in UNSAFE_CALLS
            ]
        elif isinstance(node, ast.Name) and node.id in UNSAFE_NAMES:
            found.append((node, node.id))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS:
            found.append((node, ast.unparse(node)))
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code", "allow_pickle"):
            if isinstance(node.value, ast.Constant) and node.value.value:
                found.append((node.value, f"{node.arg}={node.value.value}"))
        elif isinstance(node, ast.Dict):
            found += [
                (node, "trust_remote_code")
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                and isinstance(value, ast.Constant) and value.value
            ]  # fmt: skip
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value:
            found.append((node, "assert False"))
    return [f"{node.lineno}: {what}" for node, what in found]


def test_text_is_read_and_written_with_an_encoding():
    # Windows' own is not UTF-8; the rule of ruff is a preview, and with all previews others would change
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--preview", "--select", "PLW1514", "--quiet"]
    done = subprocess.run([*words, "src", "docs", "examples"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


READS_A_PICKLE = "base/pickled_weights.py"
"""Reads a starter's checkpoint, in a process of its own, with the loader that builds nothing but tensors."""
OPENS_WITH_PEFT = "exporting/engines/transformers.py"
"""Opens our own exports with PEFT, in a process of its own."""


def test_source_files_run_no_code_of_others():
    allowed = {READS_A_PICKLE: ["torch.load"], OPENS_WITH_PEFT: ["peft"] * 2}
    unsafe = {name: [one.partition(": ")[2] for one in offences(tree)] for name, tree in TREES.items()}
    assert {name: names for name, names in unsafe.items() if names} == allowed


def test_the_one_file_that_reads_a_pickle_reads_tensors_alone():
    calls = [ast.unparse(one) for one in ast.walk(TREES[READS_A_PICKLE]) if isinstance(one, ast.Call)]
    assert [call for call in calls if call.startswith("torch.load(")] == [
        "torch.load(source, map_location='cpu', weights_only=True)"
    ]


@pytest.mark.parametrize("text", [
    "import pickle", "from pickle import loads", "import peft.utils", "from peft import LoraConfig", "import yaml",
    "eval('1')", "exec(x)", "run = eval", "torch.load(p)", "from torch import load", "f = torch.load",
    "os.system('x')", "subprocess.run(x, shell=True)", "load(x, trust_remote_code=True)",
    "d = {'trust_remote_code': True}", "np.load(x, allow_pickle=True)", "assert False, 'x'", "assert 0",
])  # fmt: skip
def test_the_search_for_offences_finds_each_kind(text):
    # a search that finds nothing proves something only if it finds what is there
    assert offences(ast.parse(text))


def test_the_search_lets_honest_code_by():
    text = "model.eval()\nre.compile(x)\nload(x, trust_remote_code=False)\nload(x, trust_remote_code=code)\nassert x"
    assert offences(ast.parse(text)) == []


def test_every_source_file_begins_with_what_it_is():
    assert [name for name, tree in TREES.items() if not (ast.get_docstring(tree) or "").strip()] == []


def spec_classes():
    for name in FILES:
        if name.startswith("config/"):
            module = import_module("rankwise." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
            yield from (
                thing
                for thing in vars(module).values()
                if isinstance(thing, type) and issubclass(thing, Config) and thing.__module__ == module.__name__
            )


def reads_of(tree, *, own):
    """Attributes that a file reads; of a spec's own file, only those in methods that are no validators."""
    if own:
        methods = [
            item
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            for item in node.body
            if isinstance(item, ast.FunctionDef) and not any("validator" in ast.unparse(d) for d in item.decorator_list)
        ]
        return set().union(*(reads_of(method, own=False) for method in methods))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def settings_of(*specs):
    """What a user can set: these specs, and all that their fields hold."""
    for spec in specs:
        yield from ((spec, field) for field in spec.model_fields)
        held = [field.annotation for field in spec.model_fields.values()]
        for kind in held:
            held += get_args(kind)
        yield from settings_of(*(kind for kind in held if isinstance(kind, type) and issubclass(kind, Config)))


SETTINGS = sorted(set(settings_of(Experiment, GenerationConfig, TaskConfig)), key=str)
READS = {name: reads_of(tree, own=False) for name, tree in TREES.items()}


def test_every_setting_has_an_effect():
    unread = []
    for spec, field in SETTINGS:
        home = spec.__module__.removeprefix("rankwise.").replace(".", "/") + ".py"
        others = (reads for name, reads in READS.items() if name != home)
        if not any(field in reads for reads in others) and field not in reads_of(TREES[home], own=True):
            unread.append(f"{spec.__name__}.{field}")
    assert unread == [], "nothing reads it"


def test_the_search_for_settings_finds_them_all():
    found = {spec for spec, _ in SETTINGS}
    assert {spec.__name__ for spec in found} == {
        "Experiment", "ModelConfig", "DataConfig", "SourceConfig", "ValidationDataConfig", "LoraConfig",
        "AdaLoraConfig", "VeraConfig", "HeadConfig", "FullConfig", "ClassificationConfig", "ImagesConfig",
        "TrainingConfig", "GenerationConfig", "TaskConfig", "ValidationConfig", "AnchorConfig", "ReplayConfig",
        "ReplayDataConfig", "PreferenceConfig", "TrackingConfig", "Constraint",
    }  # fmt: skip
    # every other class of config/ is the base of one of these, an experiment as it is planned, with the same settings,
    # or a recipe, which we wrote and no user sets; or the preprocessing of images, which a model's own folder sets; or
    # a model for an objective, as the table of refusals compares them
    related = (any(issubclass(one, spec) for one in found) or issubclass(spec, Experiment) for spec in spec_classes())
    others = {spec for spec, known in zip(spec_classes(), related, strict=True) if not known}
    assert others == {spec for spec, _ in settings_of(Recipe)} | {ImageProcessing, Suited}
    assert not any("no_such_setting" in reads for reads in READS.values())


@pytest.mark.parametrize("name", RECIPES)
def test_every_fact_of_a_recipe_is_told_to_who_asks(name):
    # not all of them are read by the program: a licence, or what the authors used where an adapter wants another
    told = CliRunner().invoke(app, ["data", "recipes", name, "--json"])
    assert told.exit_code == 0, told.output
    (facts,) = json.loads(told.stdout)["recipes"]
    assert facts == json.loads(recipe_named(name).model_dump_json())
    assert set(facts) == set(Recipe.model_fields)


def drawn_tree():
    """`name: (parent, exit code)` as the docstring of errors.py draws it."""
    drawn, path = {}, []
    for line in errors.__doc__.splitlines():
        head = re.match(r"    (\w+) \((\w+)\)\s+(\d+|exit code)", line)
        branch = re.match(r"    ([│ ├└─]+)(\w+)\s+(\d+)\s+\S", line)
        if head:
            path = [head[1]]
            drawn[head[1]] = (head[2], None if head[3] == "exit code" else int(head[3]))
        elif branch:
            depth = len(branch[1]) // 4
            path = [*path[:depth], branch[2]]
            drawn[branch[2]] = (path[-2], int(branch[3]))
    return drawn


def test_the_tree_drawn_in_errors_is_the_tree_there_is():
    classes = {
        name: thing
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and thing.__module__ == errors.__name__
    }
    drawn = drawn_tree()
    assert set(drawn) == set(classes)
    for name, (parent, code) in drawn.items():
        made = {"ConfigError": ([],), "Interrupted": ("x",)}.get(name)
        error = classes[name](*(made or ("x",)))
        assert [base.__name__ for base in classes[name].__bases__] == [parent]
        assert code is None or error.exit_code == code


def test_every_error_is_raised_somewhere():
    # a class in the tree that nothing raises would be a promise without a keeper
    nodes = [node for name, tree in TREES.items() if name != "errors.py" for node in ast.walk(tree)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    raised = set(drawn_tree()) - {"RankwiseError"}
    assert raised <= names


def test_an_error_of_ours_is_a_value_error_and_an_interruption_is_none():
    assert issubclass(errors.RankwiseError, ValueError)
    assert not issubclass(errors.Interrupted, Exception), "`except Exception` must not swallow Ctrl-C"
    assert errors.Interrupted("stopped by a signal.", 143).exit_code == 143


@pytest.mark.parametrize(
    ("found", "known", "said"),
    [
        ("rnak", ["rank", "alpha"], ' Did you mean "rank"?'),
        ("zzz", ["rank", "alpha"], ""),
        ("lr", ["layers", "learning_rate"], ' Did you mean "learning_rate"?'),
        ("--lr", ["--layers", "--learning-rate"], ' Did you mean "--learning-rate"?'),
        ("x", [], ""),
    ],
)
def test_the_nearest_word_is_named_only_if_it_is_near(found, known, said):
    assert errors.did_you_mean(found, known) == said


@pytest.mark.parametrize(("count", "said"), [(0, ""), (2, "0, 1"), (3, "0, 1, 2"), (5, "0, 1, 2 and 2 more")])
def test_a_long_list_is_cut_and_says_how_many_are_left_out(count, said):
    assert errors.some((str(n) for n in range(count)), 3) == said
