"""No message proposes a flag that its command lacks: not those that can be provoked, and none of the source."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from kit.command import rankwise
from kit.library import Library
from kit.sources import TREES
from rankwise.cli.main import app
from rankwise.cli.words import FLAG, NAMED, flags_of_all, reworded

EVERY = dict(flags_of_all(typer.main.get_command(app)))


def messages() -> Iterator[str]:
    """Every text of the source with a flag of ours in it, but docstrings and help; values that are filled in are X."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            text = None
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(one.value) if isinstance(one, ast.Constant) else "X" for one in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n\n" not in node.value:
                text = node.value
            if text is not None and " " in text and FLAG.search(text):
                yield text


MESSAGES = sorted(set(messages()))


def lacked(message: str, command: str) -> list[str]:
    """Flags of ours in a message that the command lacks, and that are not said to be another command's."""
    of_others = {flag for flag, name in re.findall(r"(--[a-z-]+) is a flag of rankwise ([a-z ]+)\.", message)
                 if flag in EVERY[name]}  # fmt: skip
    found = []
    for one in FLAG.finditer(message):
        named = NAMED.search(message[: one.start()])
        names = () if named is None else (named[1], named[1].split()[0])
        ours = any(one[0] in flags for flags in EVERY.values()) and one[0] not in of_others
        if ours and one[0] not in EVERY[command] and not any(one[0] in EVERY.get(name, ()) for name in names):
            found.append(one[0])
    return found


def test_every_message_in_the_words_of_every_command() -> None:
    assert len(MESSAGES) > 200
    for command in EVERY:
        for text in MESSAGES:
            assert lacked(reworded(text, command, EVERY), command) == [], (command, text)


def test_classify_which_has_no_settings_proposes_none() -> None:
    for text, left in {
        "few rows of a, b: so little is said. Give more rows of them, or raise --held-out":
            "few rows of a, b: so little is said. Give more rows of them",
        "longest 130; --max-length 128 is enough for 99 % of them": "longest 130",
        "still falling, from 1 to 0.8: train longer with --epochs 8 and another --run name":
            "still falling, from 1 to 0.8",
        "the run is finished. Use another --run name, or --restart. It stays.":
            "the run is finished. Use another --run name. It stays.",
        "Choose another model with --model, or leave out --text.":
            "Choose another model with --model, or leave out --text.",
    }.items():  # fmt: skip
        assert reworded(text, "classify", EVERY) == left


def test_a_message_that_names_a_command_names_a_flag_that_it_has() -> None:
    for text in MESSAGES:
        for one in FLAG.finditer(text):
            named = NAMED.search(text[: one.start()])
            if named is not None and named[1].split()[0] in EVERY:
                known = EVERY.get(named[1], set()) | EVERY[named[1].split()[0]]
                assert one[0] in known, text


@pytest.fixture(scope="module")
def home(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with contextlib.chdir(library.lay_out(tmp_path_factory.mktemp("flags") / "home", "lora")):
        Path("unknown.jsonl").write_text(json.dumps({"question": "What is it, please?", "sql": "SELECT 1 FROM it"}))
        Path("labelled.csv").write_text("note,label\nit is long enough to be a text,yes\n")
        Path("broken.jsonl").write_text('{"prompt": "What?", "completion": ""}\n')
        Path("pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
        Path("plain.yaml").write_text("data: unknown.jsonl\nscore: exact\n")
        yield


@pytest.mark.parametrize("rows", ["unknown.jsonl", "labelled.csv", "pairs.jsonl"])
@pytest.mark.parametrize(
    "words",
    ["evaluate lora --data ROWS", "evaluate lora --task ROWS", "evaluate tiny-llama --task ROWS",
     "predict lora --data ROWS --out out.jsonl", "strength lora --data ROWS", "data check ROWS",
     "plan --model tiny-llama --data ROWS", "report ROWS",
     "advise --model tiny-llama --data ROWS", "train --model tiny-llama --data ROWS --run r --steps 1"],
)  # fmt: skip
def test_every_flag_of_an_error_exists(home: None, words: str, rows: str) -> None:
    given = shlex.split(words.replace("ROWS", rows))
    result = rankwise(*given)
    command = " ".join(given[:2]) if " ".join(given[:2]) in EVERY else given[0]
    assert result.exit_code in (0, 2) and lacked(" ".join(result.output.split()), command) == []


def test_evaluate_says_what_to_write_into_a_task(home: None) -> None:
    result = rankwise("evaluate", "lora", "--task", "plain.yaml")
    assert 'prompt: "{question}" completion: "{sql}"' in result.output and "--task FILE.yaml" in result.output
