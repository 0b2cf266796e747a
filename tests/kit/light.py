"""What commands load, seen in one fresh interpreter: the modules that each of several commands brings, and its output.

The interpreter runs the commands one after another, so a module counts for the first command that brings it. An
interpreter for each command would start anew what all of them share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rankwise

PROGRAM = """
import contextlib, io, json, sys
def packages():
    return {name.partition(".")[0] for name in sys.modules}
for words in json.loads(sys.argv[1]):
    before, printed, code = packages(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            from rankwise.cli.main import app
            app(words)
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, printed.getvalue(), sorted(packages() - before)]), flush=True)
"""


IMPORTS = """
import importlib, json, sys
for module in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(module)
    print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


class Outcome(NamedTuple):
    """How a command ended, what it printed, and the packages that no command before it had loaded."""

    code: int
    printed: str
    loaded: set[str]


def outcomes(commands: Sequence[Sequence[str]], folder: Path | None = None) -> list[Outcome]:
    """Run the commands in one interpreter that has nothing loaded, in the given working folder."""
    rows = _printed_by(PROGRAM, [json.dumps([list(map(str, words)) for words in commands])], folder)
    return [Outcome(code, printed, set(loaded)) for code, printed, loaded in rows]


def loaded_by_each(modules: Sequence[str]) -> list[set[str]]:
    """Import the modules one after another; the packages that each brings and none before it has brought."""
    return [set(names) for names in _printed_by(IMPORTS, modules)]


def _printed_by(program: str, arguments: Sequence[str], folder: Path | None = None) -> list[Any]:
    """The JSON lines that a program prints in an interpreter of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]
