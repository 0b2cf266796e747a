"""Imports point down, cost nothing until they are needed, and the list of exports is one list."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import rankwise
from kit.light import outcomes

SOURCE = Path(rankwise.__file__).parent
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf", "numpy"}


def loaded_after(program, *argv):
    """Modules that a fresh interpreter holds after a program, and what the program printed."""
    tail = "\nimport sys\nprint('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    done = subprocess.run(
        [sys.executable, "-c", program + tail, *argv],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
    )
    printed, _, loaded = done.stdout.rpartition("LOADED ")
    return set(loaded.split()), printed


def test_the_package_alone_brings_nothing_large():
    loaded, _ = loaded_after("import rankwise; dir(rankwise); rankwise.__version__")
    assert "rankwise" in loaded
    assert not loaded & (HEAVY | {"pydantic", "ruamel", "typer", "rich"})


def test_specs_and_runs_bring_no_torch():
    loaded, _ = loaded_after("import rankwise.config.reading, rankwise.runs.directory, rankwise.runs.metrics_log")
    assert "pydantic" in loaded
    assert not loaded & HEAVY


MISTAKE = ("train", "--model", "m", "--data", "d", "--run", "..")
HELP = [
    (*command, "--help")
    for command in (
        (), ("train",), ("demo",), ("chat",), ("generate",), ("predict",), ("doctor",), ("models",), ("inspect",),
        ("strength",), ("export",), ("report",), ("compare",), ("runs",), ("cache",),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def outcome_of():
    """What came of each command."""
    return dict(zip([MISTAKE, *HELP], outcomes([MISTAKE, *HELP]), strict=True))


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_brings_no_torch(outcome_of, words):
    outcome = outcome_of[words]
    assert outcome.code == 0 and "--help" in outcome.printed
    assert not outcome.loaded & HEAVY


def test_a_mistake_in_the_settings_is_told_before_torch_is_loaded(outcome_of):
    outcome = outcome_of[MISTAKE]
    assert outcome.code == 2 and "rankwise" in outcome.loaded
    assert not outcome.loaded & HEAVY


@pytest.mark.parametrize("name", rankwise.__all__)
def test_every_exported_name_is_there_and_lives_where_it_is_said_to(name):
    thing = getattr(rankwise, name)
    assert thing is getattr(import_module(rankwise._HOMES[name]), name)
    assert name in dir(rankwise)


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = rankwise.nothing_such


def test_type_checkers_and_the_interpreter_see_the_same_exports():
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for name in node.names:
            assert name.asname == name.name, "a plain import is not an export to a type checker"
            seen[name.name] = node.module
    assert seen == rankwise._HOMES
    assert list(rankwise.__all__) == sorted(rankwise._HOMES)


def test_the_import_contracts_hold():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "0 broken" in done.stdout
    assert "0 kept" not in done.stdout


def test_the_package_imports_without_modules_that_windows_lacks():
    program = """
import builtins, pkgutil, sys
from importlib import import_module
POSIX = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline"}
plain = builtins.__import__
def checked(name, globals=None, locals=None, fromlist=(), level=0):
    if name in POSIX and (globals or {}).get("__name__", "").startswith("rankwise"):
        raise ImportError(f"{globals['__name__']} imports {name}")
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = checked
import rankwise
names = [one.name for one in pkgutil.walk_packages(rankwise.__path__, "rankwise.") if one.name != "rankwise.__main__"]
for name in names:
    import_module(name)
print(len(names))
"""
    _, printed = loaded_after(program)
    assert int(printed) > 200
