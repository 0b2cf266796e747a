"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

README = (Path(__file__).parents[2] / "README.md").read_text()
DATA_PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
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
    from rankwise.config.reading import read_experiment

    (text,) = blocks("yaml")
    (tmp_path / "my-first.yaml").write_text(text)
    experiment = read_experiment(tmp_path / "my-first.yaml")
    assert experiment.data.held_out == 50 and experiment.training.learning_rate == 1e-3


TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TREE = {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a"}]}
ROWS_OF = {
    "messages": ROWS[0] | {"tools": []},
    "prompt": {"prompt": "q", "completion": "a"},
    "alpaca": {"instruction": "q", "output": "a", "input": "", "system": "", "history": []},
    "dolly": {"instruction": "q", "response": "a", "context": ""},
    "sharegpt": {"conversations": TURNS, "tools": []},
    "text": {"text": "t"},
    "classification": {"text": "t", "label": 0, "text_pair": "t"},
    "self-instruct": {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
    "oasst-trees": {"prompt": TREE},
}


def test_the_forms_of_rows_that_the_page_on_data_shows_are_those_we_read() -> None:
    from rankwise.config.data import Format
    from rankwise.data.formats import find_format, parse_row

    table = dict(re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \| (.*) \|$", DATA_PAGE, re.MULTILINE))
    keys = {form: cell for forms, cell in table.items() for form in re.findall(r"[\w-]+", forms)}
    assert set(keys) == set(get_args(Format)) - {"auto"}
    for form, row in ROWS_OF.items():
        assert find_format(row, "README") == form
        assert parse_row(row, form, "README")
        assert all(f"`{key}`" in keys[form] for key in row) or "as those data sets have them" in keys[form]
    for asked, answered in (("prompt", "response"), ("question", "answer")):
        assert f"`{asked}`" in keys["prompt"] and f"`{answered}`" in keys["prompt"]
        assert find_format({asked: "q", answered: "a"}, "README") == "prompt"


def test_the_map_lists_the_folders_there_are() -> None:
    listed = set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    source = Path(__file__).parents[2] / "src" / "rankwise"
    assert listed == {path.name for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_every_command_it_names_exists() -> None:
    from typer.main import get_command

    from rankwise.cli.main import app

    named = set(re.findall(r"`?rankwise (train|chat|generate|inspect|export|doctor|models|demo|data)\b", README))
    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert named <= set(commands)
    assert {"check", "preview"} <= set(re.findall(r"rankwise data (\w+)", README)) <= set(commands["data"].commands)
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"make (\w+)  ", README))


def test_the_loop_that_the_page_on_adalora_shows_runs_and_leaves_an_adapter(tmp_path, monkeypatch) -> None:
    import torch

    from conftest import tiny_model

    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "adalora.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    module = tiny_model("llama")
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    names = {
        "module": module, "steps": 12, "batch": lambda step: ids,
        "loss_of": lambda batch: torch.nn.functional.cross_entropy(module(batch).logits.flatten(0, 1), batch.flatten()),
    }  # fmt: skip
    exec(code, names)  # noqa: S102  our own page
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    assert sum(adapter.rank for adapter in names["adapters"].adapters().values()) == 8 * 14
