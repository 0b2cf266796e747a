"""What the README and the pages in docs/ show works as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

HOME = Path(__file__).parents[2]
README = (HOME / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((HOME / "docs").glob("*.md"))}
DATA_PAGE = PAGES["data.md"]
ROWS = [
    {"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]},
    {"messages": [{"role": "user", "content": "When will it come?"}, {"role": "assistant", "content": "Tomorrow."}]},
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def headings(page: Path) -> list[str]:
    """What a link to each heading of a page ends with."""
    texts = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in texts]


def test_the_python_runs(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model of two small blocks in the place of the starter, which examples/one_row.py loads by its name."""
    (tmp_path / "mydata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    code = "\n".join(blocks("python.md", "python"))
    assert code.count('"smollm2-135m"') == 2
    code = code.replace('"smollm2-135m"', '"tiny"')
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    config = tmp_path / "tiny" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102  our own page
    printed = capsys.readouterr().out
    assert "tuned:" in printed and "base:" in printed
    assert (tmp_path / "loss.png").is_file()
    assert (tmp_path / "runs" / "my-first" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_yaml_is_a_whole_experiment(tmp_path: Path) -> None:
    from rankwise.config.reading import read_experiment

    text = blocks("train.md", "yaml")[0]
    (tmp_path / "my-first.yaml").write_text(text)
    experiment = read_experiment(tmp_path / "my-first.yaml")
    assert experiment.data.held_out == 50 and experiment.training.learning_rate == 1e-3


def test_every_link_leads_to_a_file_and_a_heading_and_the_index_to_every_page() -> None:
    files = [HOME / "README.md", *(HOME / "docs").rglob("*.md")]
    pages = {file: file.read_text(encoding="utf-8") for file in files}
    broken = list[str]()
    for file, text in pages.items():
        for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([\w-]*))?\)", text):
            there = (file.parent / target).resolve() if target else file
            if not there.exists() or (heading and there.suffix == ".md" and heading not in headings(there)):
                broken.append(f"{file.name}: {target}#{heading}")
    assert broken == []
    assert PAGES.keys() - {"README.md"} <= set(re.findall(r"\]\(([^)#:]+)\)", PAGES["README.md"]))


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
    from rankwise.rows.forms.formats import find_format, parse_row

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
    listed = re.findall(r"^  (\w+)/ ", PAGES["code.md"], re.MULTILINE)
    source = HOME / "src" / "rankwise"
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.name for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_every_command_and_flag_they_name_exists() -> None:
    from typer.main import get_command

    from rankwise.cli.main import app

    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    text = "\n".join([README, *PAGES.values()])
    written = [line for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
               for line in re.findall(r"^rankwise (.*)$", block, re.MULTILINE)]  # fmt: skip
    written += re.findall(r"`rankwise ([^`\n]+)`", text)
    assert len(written) > 40
    for line in written:
        words = line.partition("#")[0].split()
        command = commands.get(words[0])
        assert command is not None, line
        inner = getattr(command, "commands", {})
        command = inner.get(words[1], command) if len(words) > 1 else command
        options = {name for parameter in command.params for name in parameter.opts}
        assert set(re.findall(r" (--[a-z-]+)", f" {line.partition('#')[0]}")) <= options, line
    makefile = (HOME / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets and all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_every_target_of_the_makefile_finds_what_it_needs(tmp_path) -> None:
    """From a folder in which nothing was made yet."""
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(HOME / name)
    targets = re.findall(r"^([a-z-]+):(?!=)", (HOME / "Makefile").read_text(), re.MULTILINE)
    assert {"install", "test", "release", "engines"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_an_exit_code_of_the_page_is_one_of_the_errors() -> None:
    from rankwise import errors

    codes = {thing.exit_code for thing in vars(errors).values()
             if isinstance(thing, type) and issubclass(thing, errors.RankwiseError)}  # fmt: skip
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", PAGES["runs.md"], re.MULTILINE)
              for code in cell.split(", ")}  # fmt: skip
    assert listed == codes | {0, 130, 143}


def test_the_loop_that_the_page_on_adalora_shows_runs_and_leaves_an_adapter(tmp_path, monkeypatch) -> None:
    import torch

    from conftest import tiny_model

    monkeypatch.chdir(tmp_path)
    [code] = blocks("adalora.md", "python")
    module = tiny_model("llama")
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    names = {
        "module": module, "steps": 12, "batch": lambda step: ids,
        "loss_of": lambda batch: torch.nn.functional.cross_entropy(module(batch).logits.flatten(0, 1), batch.flatten()),
    }  # fmt: skip
    exec(code, names)  # noqa: S102  our own page
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    assert sum(adapter.rank for adapter in names["adapters"].adapters().values()) == 8 * 14
