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
FIRST = "train --model model --data rows.jsonl --run first --held-out 8 --quiet"
COMMANDS = (
    FIRST, "plan --model model --data rows.jsonl", "data check rows.jsonl --model model", "evaluate first",
)  # fmt: skip
COUNTED = """
import json, os, sys
from collections import Counter
from pathlib import Path

home, source = Path.cwd(), sys.argv[1]
opened, watched = Counter(), {str(home / name) for name in ("rows.jsonl", "model/config.json")}

def hook(event, values):
    if event == "open" and isinstance(values[0], (str, os.PathLike)) and os.path.abspath(values[0]) in watched:
        frame = sys._getframe(1)
        while frame.f_code.co_filename.endswith("pathlib.py"):
            frame = frame.f_back
        opened[Path(values[0]).name] += frame.f_code.co_filename.startswith(source)

sys.addaudithook(hook)
from rankwise.cli.main import app
try:
    app(sys.argv[2:])
except SystemExit as ended:
    assert not ended.code, ended.code
print("OPENED", json.dumps(opened))
"""


def opened(command: str, folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(SOURCE), *command.split()], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"RANKWISE_CACHE": str(folder / "cache"), "PYTHONPATH": str(SOURCE.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("OPENED ")[2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A folder with a run, and what it opened."""
    home = tmp_path_factory.mktemp("openings")
    write_model(home / "model")
    write_rows(home / "rows.jsonl")
    return home, opened(FIRST, home)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_opens_rows_and_config_once(command: str, trained: tuple[Path, dict[str, int]]) -> None:
    home, first = trained
    counts = first if command == FIRST else opened(command, home)
    assert counts == {"rows.jsonl": 1, "config.json": 1}
