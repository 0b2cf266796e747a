"""`rankwise models`, `models pull`, `doctor`, `--version` and `python -m rankwise`: what is here, in words and JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter

import pytest
from huggingface_hub import constants
from typer.main import get_command
from typer.testing import CliRunner

from kit.command import printed, rankwise
from rankwise import __version__
from rankwise.cli.main import COMMANDS, EXAMPLES, app


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder and empty caches of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # as HF_HOME does before it is imported


def test_a_starter_that_was_not_fetched_is_listed_as_such():
    listed = printed("models")["models"]
    starter = next(model for model in listed if model["name"] == "smollm2-135m")
    assert (starter["kind"], starter["cached"], starter["bytes"]) == ("starter", False, 0)
    line = next(line for line in rankwise("models").stdout.splitlines() if line.startswith("smollm2-135m"))
    assert "not downloaded" in line and starter["about"] in line


def test_a_converted_model_in_the_cache_is_listed_with_its_size(tmp_path):
    folder = tmp_path / "cache" / "models" / "gguf-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1234)
    listed = printed("models")["models"]
    assert {"cached": True, "bytes": 1234, "kind": "converted GGUF"}.items() <= listed[-1].items()


def test_pulling_a_folder_says_where_it_lies_and_how_large_it_is(tiny_folder):
    size = sum(file.stat().st_size for file in tiny_folder.iterdir())
    pulled = rankwise("models", "pull", tiny_folder, "--json")
    assert json.loads(pulled.stdout) == {
        "name": str(tiny_folder), "kind": "local folder", "cached": True, "bytes": size, "about": str(tiny_folder),
        "does": "",
    }  # fmt: skip
    assert str(tiny_folder) in rankwise("models", "pull", tiny_folder).stdout


def test_doctor_gives_a_name_a_value_a_verdict_and_a_remark_for_each_check():
    result = rankwise("doctor", "--json")
    assert result.stdout.count("\n") == 1
    diagnosis = json.loads(result.stdout)
    assert all(set(check) == {"name", "value", "verdict", "remark"} for check in diagnosis["checks"])
    verdicts = [check["verdict"] for check in diagnosis["checks"]]
    assert set(verdicts) <= {"good", "note", "problem"}
    assert diagnosis["able"] == ("problem" not in verdicts) == (result.exit_code == 0)
    values = {check["name"]: check["value"] for check in diagnosis["checks"]}
    assert {"python", "torch", "processor", "memory", "cache folder", "this folder", "cached models"} <= set(values)
    assert values["rankwise"] == __version__
    assert values["cached models"] == "none"
    assert values["model hub"] == "not reachable"


def test_doctor_says_problem_and_exits_with_one_where_the_cache_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "file" / "cache"))
    result = rankwise("doctor", "--json")
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, repr(result.exception)
    diagnosis = json.loads(result.stdout)
    check = next(check for check in diagnosis["checks"] if check["name"] == "cache folder")
    assert check["verdict"] == "problem" and not diagnosis["able"]


def test_python_dash_m_rankwise_is_the_same_command_and_loads_no_torch_for_its_version():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rankwise", "--version"], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stdout) == (0, f"{__version__}\n")
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "rankwise.cli.main" in imported and not imported & {"torch", "transformers"}


@pytest.mark.parametrize("command", [["train"], ["plan"], ["advise"], ["sweep"], ["queue", "add"]])
def test_help_shows_every_option_once_and_begins_with_what_is_required(command):
    group = get_command(app)
    for word in command:
        group = group.commands[word]
    options = {one.opts[0] for one in group.params if one.param_type_name == "option"}
    shown = rankwise(*command, "--help").stdout
    assert Counter(re.findall(r"^  (--[a-z-]+)", shown, re.MULTILINE)) == Counter([*options, "--help"])
    heads = re.findall(r"^([A-Z].*):$", shown, re.MULTILINE)
    required = "Required, as flags or in the YAML file"
    assert (heads[1] == required) == (required in heads) == (command != ["plan"]), "a plan needs no rows and no run"
    assert shown.index("  --model") < shown.index("  --data") < shown.index("Rows:") < shown.index("Other options:")


def test_required_and_common_flags_come_first_in_the_order_in_which_a_training_is_thought_of():
    begin = ["--model", "--data", "--run", "--prompt", "--completion", "--text", "--label", "--held-out", "--epochs"]
    assert re.findall(r"^  (--[a-z-]+)", rankwise("train", "--help").stdout, re.MULTILINE)[: len(begin)] == begin


def leaves_of(group, *words):
    yield from ([] if group.hidden else [(words, group)])
    for name, command in getattr(group, "commands", {}).items():
        yield from leaves_of(command, *words, name)


def test_every_help_ends_with_calls_that_its_command_takes():
    shown = list[str]()
    for words, command in leaves_of(get_command(app)):
        told = rankwise(*words, "--help").stdout
        calls = told.partition("Examples:\n")[2].splitlines()
        assert 1 <= len(calls) <= 3 and max(map(len, calls)) < 100, (words, calls)
        assert re.match(r"\n  [A-Z][a-z-]+ .*?[.\n]", told.partition("\n")[2]), "a sentence"
        shown += calls
        for call in calls if words else ():
            program, *given = shlex.split(call)
            assert program == "rankwise" and (*given,)[: len(words)] == words, call
            given, called = given[len(words) :], command
            while given and given[0] in getattr(called, "commands", {}):
                called = called.commands[given.pop(0)]
            called.make_context("", given)  # UsageError for a flag or a value that it does not take
    assert {call for call in EXAMPLES.split("\n") if call} <= {call.strip().removeprefix("rankwise ") for call in shown}


@pytest.mark.parametrize(("command", "old", "new"), [
    ("train", "--products", "--matmul"), ("plan", "--products", "--matmul"), ("serve", "--together", "--max-batch"),
    ("serve", "--waiting", "--max-queue"), ("serve", "--prefix-memory", "--prefix-cache"),
])  # fmt: skip
def test_a_flag_that_was_renamed_is_answered_with_its_new_name(command, old, new):
    told = rankwise(command, old, "1")
    assert told.exit_code == 2 and old in told.output and new in told.output


def test_help_lists_every_command_once_in_its_part_with_a_whole_sentence(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = rankwise("--help").stdout
    assert "…" not in shown and "..." not in shown.partition("Data:")[2]
    assert re.findall(r"^([A-Z][a-z ]+):$", shown, re.MULTILINE)[1:] == [*COMMANDS]
    listed = re.findall(r"^  ([a-z]+) ", shown.partition("Data:")[2], re.MULTILINE)
    assert Counter(listed) == Counter([*get_command(app).commands])
    assert "End a run early: finish the current step and save the result." in " ".join(
        rankwise("runs", "--help").stdout.split()
    )


def test_a_short_form_of_a_flag_is_answered_with_the_flag():
    told = rankwise("train", "--lr", "1e-4").output
    assert "--learning-rate)" in told and "--layers" not in told
    assert "--rank" in rankwise("train", "--rnak", "4").output


TASKS, FORMATS = ["sst2", "stsb", "svamp"], ["gguf", "gguf-lora"]
STARTED = ["dinov2-small", "efficientnet-lite0", "minilm", "qwen-0.5b", "smollm2-135m"]


@pytest.mark.parametrize(("typed", "proposed"), [
    ("generate ti", ["tickets", "titles"]), ("runs delete tickets ti", ["tickets", "titles"]),
    ("queue stop tic", ["tickets"]), ("train --from tic", ["tickets"]), ("train --model ", STARTED),
    ("evaluate ", ["tickets", "titles", *STARTED]), ("models pull min", ["minilm"]),
    ("train --method ", ["adalora", "full", "head", "lora", "vera"]), ("plan --quantize n", ["nf4", "none"]),
    ("evaluate tickets --task s", TASKS), ("export tickets --format gg", FORMATS), ("tra", ["train"]),
    ("train --recipe v", ["vicuna"]), ("train --data ", []),
    ("train --log-to wandb,t", ["wandb,tensorboard", "wandb,trackio"]),
    ("evaluate tickets --score exact,js", ["exact,json", "exact,json_exact", "exact,json_valid"]),
])  # fmt: skip
def test_completion_knows_runs_starters_and_the_words_of_an_option(typed, proposed, tmp_path):
    for name in ("tickets", "titles", ".hidden"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    words = f"rankwise {typed}"
    asking = {"_RANKWISE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert sorted(CliRunner().invoke(app, env=asking).stdout.split()) == sorted(proposed)


def test_completion_loads_no_torch(tmp_path):
    asking = {"_RANKWISE_COMPLETE": "complete_bash", "COMP_WORDS": "rankwise inspect ", "COMP_CWORD": "2"}
    program = "import sys; sys.argv = ['rankwise']; from rankwise.cli.main import app; app()"
    called = [sys.executable, "-X", "importtime", "-c", program]
    asked = subprocess.run(called, capture_output=True, text=True, env=os.environ | asking)
    assert asked.stdout.split() == STARTED
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()}
