"""Every flag of every command, and every key of what `--json` prints, as surface.txt lists them.

A change of this list is a change for users: it is a line of CHANGELOG.md.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import typing
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rankwise.cli.main import app

GOLDEN = Path(__file__).parent
LIST = GOLDEN / "surface.txt"
RENEW = "GOLDEN=write pytest tests/golden/test_surface.py"
LLAMA = "--model llama --data rows.jsonl --backend eager --quiet"
COMMANDS = f"""
data check rows.jsonl --model llama
data check labelled.jsonl --model bert
data preview rows.jsonl --model llama --rows 1
data preview labelled.jsonl --model bert --rows 1
data recipes alpaca
plan {LLAMA} --steps 2 --device rtx-3090 --price 1
train {LLAMA} --force-memory --run new --steps 2
train {LLAMA} --force-memory --run whole --method full --steps 1 --set training.learning_rate=0.001
evaluate lora --text text.txt --blocks 2 --quiet
evaluate classifier --quiet
inspect lora
inspect runs/classifier/adapter
inspect llama
compare lora adalora
report lora
strength lora --text text.txt --blocks 2 --quiet
predict lora --data rows.jsonl --out answers.jsonl --max-new-tokens 2 --quiet
predict classifier --data labelled.jsonl --out labels.jsonl --quiet
predict lora --text Hello --max-new-tokens 2 --quiet
predict classifier --text Hello --quiet
data sample tickets --out tickets.csv
generate lora --prompt Hello --max-new-tokens 2 --both
chat lora --max-new-tokens 2
merge lora new --weights 0.5,0.5 --to merged --plan
merge lora --to merged
merge lora new --weights 0.5,0.5 --to combined --combine ties --rank 2 --as-adapter
extract whole --to extracted --rank 2
export lora --to peft
export lora --to model --format merged
export lora --to gguf --format gguf-lora
sweep {LLAMA} --run swept --steps 1 --held-out 2 --over adapter.rank=1,2
watch lora
runs list
runs show lora
runs verify lora
runs rename new newer
runs delete newer --yes
queue
models
cache
cache clean --yes
doctor
runs show nobody
"""


NAMED = re.compile(r"(?:data|runs) \w+|cache clean|\w+")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN, tmp_path / "home", ignore=shutil.ignore_patterns("*.py", "__pycache__", "killed"))
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))


def flags(command: Any, name: str) -> Iterator[str]:
    for word, inner in getattr(command, "commands", {}).items():
        yield from flags(inner, f"{name} {word}")
    own = signature(command.callback, eval_str=True).parameters if command.params else {}
    for parameter in [one for one in command.params if one.name in own]:  # others are typer's
        kind = own[parameter.name].annotation
        default = re.search(r"\[default: (.*?)\]", parameter.help or "")
        value = default[1] if default else parameter.default
        words = [*parameter.opts, *parameter.secondary_opts]
        ending = "  required" if parameter.required else "" if value is None else f"  = {value}"
        yield f"{name} {' '.join(words)}  {type_named(kind)}{ending}"


def type_named(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        return type_named(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (UnionType, typing.Union):
        return "|".join(type_named(one) for one in typing.get_args(kind) if one is not NoneType)
    return getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)


def keys(value: Any, path: str) -> Iterator[str]:
    """Each path with the type of what stands there; names of layers, files and devices are `*`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            is_ours = re.fullmatch("[a-z][a-z0-9_]*", key) and not path.endswith(".devices")
            yield from keys(inner, f"{path}.{key if is_ours else '*'}")
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for inner in value:
            yield from keys(inner, f"{path}[]")
    else:
        named = {dict: "mapping", list: "list", str: "text", bool: "true or false", NoneType: "null"}
        yield f"{path}  {named.get(type(value), 'number')}"


def printed(words: str) -> list[Any]:
    done = CliRunner().invoke(app, [*words.split(), "--json"], input="Hello\n")
    assert done.exit_code == (2 if "nobody" in words else 0), (words, done.output, done.exception)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(of: str, lines: Iterator[str]) -> None:
    """With those lines of the list that begin so."""
    now, listed = sorted(set(lines)), LIST.read_text().splitlines()
    if os.environ.get("GOLDEN") == "write":
        listed = sorted({*(line for line in listed if not line.startswith(of)), *now})
        LIST.write_text("".join(f"{line}\n" for line in listed))
    before = [line for line in listed if line.startswith(of)]
    changed = "\n".join(difflib.unified_diff(before, now, "before", "now", n=0, lineterm=""))
    assert not changed, f"Say in CHANGELOG.md what changes for users, and write the list anew: {RENEW}\n{changed}"


def test_flags_are_those_of_the_list() -> None:
    compare("flag ", flags(typer.main.get_command(app), "flag"))


@pytest.mark.slow
def test_keys_are_those_of_the_list(home: None) -> None:
    lines: list[str] = []
    for words in COMMANDS.strip().splitlines():
        name = NAMED.match(words)
        assert name is not None, words
        lines += [line for value in printed(words) for line in keys(value, f"json {name[0]}")]
    compare("json ", iter(lines))
