"""A command opens the rows once, and the base's config.json once.

An opening counts as ours where the frame that opens stands in src; pathlib stands for who calls it. What libraries open
themselves (transformers reads config.json twice, tokenizer.json once) does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixed_runs import write_model, write_rows

import rankwise

SOURCE = Path(rankwise.__file__).parent
COMMANDS = (
    "train --model model --data rows.jsonl --run first --held-out 8 --quiet",
    "plan --model model --data rows.jsonl",
    "data check rows.jsonl --model model",
    "evaluate first",
)
COUNTED = """
import json, os, sys
from collections import Counter
from pathlib import Path

import rankwise.commands.evaluate, rankwise.commands.train
from rankwise.cli.main import app

source, *commands = sys.argv[1:]
opened, watched = Counter(), {str(Path.cwd() / name) for name in ("rows.jsonl", "model/config.json")}

def hook(event, values):
    if event == "open" and isinstance(values[0], (str, os.PathLike)) and os.path.abspath(values[0]) in watched:
        frame = sys._getframe(1)
        while frame.f_code.co_filename.endswith("pathlib.py"):
            frame = frame.f_back
        opened[Path(values[0]).name] += frame.f_code.co_filename.startswith(source)

for command in commands:
    child = os.fork()
    if child == 0:
        sys.addaudithook(hook)
        try:
            app(command.split())
        except SystemExit as ended:
            assert not ended.code, ended.code
        print("OPENED", json.dumps(opened), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, command
"""
"""Each command in a process of its own, which has nothing but the imports from the one before it."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What each command opened, one after another in one folder."""
    home = tmp_path_factory.mktemp("openings")
    write_model(home / "model")
    write_rows(home / "rows.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(SOURCE), *COMMANDS], cwd=home, capture_output=True, text=True,
        env=os.environ | {"RANKWISE_CACHE": str(home / "cache"), "PYTHONPATH": str(SOURCE.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (line.partition("OPENED ")[2] for line in done.stdout.splitlines())
    return dict(zip(COMMANDS, (json.loads(line) for line in lines if line), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_opens_rows_and_config_once(command: str, opened: dict[str, dict[str, int]]) -> None:
    assert opened[command] == {"rows.jsonl": 1, "config.json": 1}
