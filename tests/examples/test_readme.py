"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
ROWS = [
    {"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]},
    {"messages": [{"role": "user", "content": "When will it come?"}, {"role": "assistant", "content": "Tomorrow."}]},
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs(starter_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mydata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "adapted:" in done.stdout and "base:" in done.stdout
    assert (tmp_path / "runs" / "my-first" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_yaml_is_a_whole_experiment(tmp_path: Path) -> None:
    from rankwise.spec.reading import read_experiment

    (text,) = blocks("yaml")
    (tmp_path / "my-first.yaml").write_text(text)
    experiment = read_experiment(tmp_path / "my-first.yaml")
    assert experiment.data.held_out == 50 and experiment.training.learning_rate == 1e-3


def test_the_rows_it_shows_are_rows_we_read(tmp_path: Path) -> None:
    from rankwise.data.formats import find_format, parse_row

    shown = [json.loads(line) for line in README.splitlines() if line.startswith('{"')]
    assert [find_format(row, "README") for row in shown] == ["messages", "prompt", "instruction"]
    assert all(parse_row(row, find_format(row, "README"), "README").messages for row in shown)


def test_the_map_lists_the_folders_there_are() -> None:
    listed = set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    source = Path(__file__).parents[2] / "src" / "rankwise"
    assert listed == {path.name for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_every_command_it_names_exists() -> None:
    from typer.main import get_command

    from rankwise.cli.main import app

    named = set(re.findall(r"rankwise (train|chat|generate|doctor|models|demo)\b", README))
    assert named <= set(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"make (\w+)  ", README))
