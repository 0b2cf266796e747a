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
from typing import NamedTuple

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


class Outcome(NamedTuple):
    """How a command ended, what it printed, and the packages that no command before it had loaded."""

    code: int
    printed: str
    loaded: set[str]


def outcomes(commands: Sequence[Sequence[str]], folder: Path | None = None) -> list[Outcome]:
    """Run the commands in one interpreter that has nothing loaded, in the given working folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([list(map(str, words)) for words in commands])],
        cwd=folder, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [Outcome(code, printed, set(loaded)) for code, printed, loaded in rows]
