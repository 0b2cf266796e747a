"""Every command in the tutorials and the README exists with the flags that it is given."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest
import typer

from rankwise.cli.main import app

HOME = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("tutorials", HOME / "examples" / "tutorials.py")
assert _SPEC is not None and _SPEC.loader is not None
tutorials = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tutorials)
PAGES = sorted(tutorials.PAGES.glob("*.md"))


def parsed(words: list[str]) -> None:
    """Let the command read its words, and run nothing."""
    command = typer.main.get_command(app)
    context = command.make_context("rankwise", words[:1] if words[0] not in ("data", "models", "runs") else words[:2])
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, words)
        context = command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_tutorial_are_read_as_they_are_written(page):
    commands = tutorials.commands_of(page.read_text())
    ours = [shlex.split(one.partition(" | ")[0], comments=True)[1:] for one in commands if one.startswith("rankwise")]
    assert len(ours) >= 6
    for words in ours:
        parsed(words)
    for code in (one.partition("\n")[2].removesuffix("END") for one in commands if one.startswith("python")):
        compile(code, page.name, "exec")


def test_the_index_leads_to_every_tutorial():
    index = (HOME / "docs" / "README.md").read_text()
    assert len(PAGES) == 6 and all(f"tutorials/{page.name}" in index for page in PAGES)


def test_an_output_is_written_below_its_commands_and_replaced(tmp_path, capfd):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\necho one > a\nls $PWD/*\n```\n\n```text\nold\n```\n\n```sh\nfalse\n```\n\n```text\nkept\n```\n"
    )
    before = tutorials.commands_of(page.read_text())
    for _ in range(2):
        tutorials.run_page(page, tmp_path, True)
    assert page.read_text().split("```text\n")[1].startswith("a\npage.md\n```\n\n```sh\nfalse\n```\n\n")
    assert tutorials.commands_of(page.read_text()) == before and page.read_text().endswith("```text\nkept\n```\n")


def test_an_output_is_shortened_in_its_middle_and_what_is_left_out_is_marked(tmp_path):
    lines = [f"line {n}" for n in range(40)]
    shown = tutorials.shown("\n".join(lines), "warning: few rows\n", tmp_path).splitlines()
    assert shown == ["warning: few rows", *lines[:7], "…", *lines[-9:]]
    assert tutorials.shown(f"{tmp_path}/a: 4 rows\n", "Training 40%  4/10\n", tmp_path) == "…\na: 4 rows\n"


def test_a_flag_that_is_not_there_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        parsed(["predict", "tickets", "--txt", "a"])
