"""docs/automation.md and llms.txt are what their script makes of the commands, and every command line in them runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kit.classifiers import encoder_folder
from kit.command import rankwise
from kit.vision_models import save_folder
from rankwise.cli.main import app

HOME = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("make_automation", HOME / "docs" / "make_automation.py")
assert _SPEC is not None and _SPEC.loader is not None
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)
PAGE, LLMS = (path.read_text(encoding="utf-8") for path in (script.PAGE, script.LLMS))
BLOCKS = [
    block for text in (PAGE, LLMS) for block in re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]
SMALL = {"minilm": "bert", "smollm2-135m": "tiny", "dinov2-small": "vit"}
"""Models of two small blocks in the place of the starters."""
SHORTER = {"train": ["--steps", "2"], "predict": ["--max-new-tokens", "40"], "generate": ["--max-new-tokens", "8"]}


def section_of(command: str) -> str:
    return PAGE.partition(f"\n### rankwise {command}")[2].partition("\n### ")[0]


def test_both_are_what_the_script_makes() -> None:
    assert (PAGE, LLMS) == (script.automation(), script.llms()), "run: make docs"


def test_every_command_has_a_part_with_all_its_flags() -> None:
    group = typer.main.get_command(app)
    for words in (name for _, name, _ in script.commands()):
        command = group
        for word in words.split():
            command = command.commands[word]
        part = section_of(words)
        flags = {flag for one in command.params for flag in one.opts if flag.startswith("--")}
        assert flags - {"--json", "--quiet", "--help"} <= set(re.findall(r"--[a-z-]+", part)), words
    assert {"data check", "runs delete", "queue", "queue add", "cache clean", "sign"} <= {
        one for _, one, _ in script.commands()
    }


def test_the_list_for_assistants_has_the_form_of_llmstxt() -> None:
    first, _, rest = LLMS.partition("\n\n")
    assert first == "# rankwise" and rest.startswith("> ")
    before, *sections = re.split(r"^## ", LLMS, flags=re.MULTILINE)
    assert "\n#" not in before.removeprefix("# ")
    links = [
        re.fullmatch(r"- \[[^]]+\]\(([^)]+)\)(: .+)?", line)
        for one in sections
        for line in one.splitlines()[2:]
        if line
    ]
    assert [one.partition("\n")[0] for one in sections] == ["Docs", "Tutorials", "Optional"] and all(links)
    assert {one[1] for one in links} >= {f"docs/{path.name}" for path in (HOME / "docs").glob("*.md")} - {
        "docs/code.md"
    }
    assert all((HOME / one[1]).is_file() for one in links)


@pytest.fixture
def home(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "tiny")
    config = json.loads(Path("tiny/config.json").read_text()) | {"max_position_embeddings": 1024}
    Path("tiny/config.json").write_text(json.dumps(config))
    encoder_folder(Path("bert"))
    save_folder("vit", Path("vit"))


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=["page", "classes", "fields", "style", "numbers", "pictures"])
def test_every_command_line_runs_and_prints_the_keys_of_the_page(block: str, home: None) -> None:
    for line in block.replace("\\\n", "").splitlines():
        words = [SMALL.get(word, word) for word in shlex.split(line.replace("--epochs 3", ""))]
        if words[0] == "python":
            subprocess.run(["bash", "-c", line.replace("python", shlex.quote(sys.executable), 1)], check=True)
            continue
        name = " ".join(words[1:3]) if words[1] in ("data", "runs") else words[1]
        writes = "tiny" in block.replace("smollm2-135m", "tiny") or name == "train"
        done = rankwise(*words[1:], *SHORTER.get(name, []) * writes)
        assert done.exit_code == 0, (line, done.output[-2000:], done.exception)
        if "--json" in words:
            printed, part = json.loads(done.stdout), section_of(name)
            assert [key for key in printed if f"\n{key}" not in part] == [], line


def test_a_key_that_is_not_printed_would_be_noticed() -> None:
    assert "\nvalidation_loss_after: " in section_of("train") and "\nvalidation_loss_afters" not in section_of("train")
