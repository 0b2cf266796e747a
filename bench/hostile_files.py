"""Hostile chat templates, damaged config.json files and Ctrl-C, each through the command line, many times.

    python bench/hostile_files.py templates|configs|interrupts --out bench/results/TITLE

templates   the 26 of tests/kit/hostile_templates.py x `data check` and `train`: exit code, seconds, largest memory
configs     the 67 of tests/kit/damaged_configs.py x `plan` and `train`
interrupts  16 command lines x 13 delays from the first line of rankwise on, each a fresh process

A case passes if no traceback is printed, and for files if the command ends with code 2. Commands on files run in forks
of a process that has imported torch (tests/kit/processes.py); seconds count from the fork, and memory is what the
command and the processes that it started have resident beyond what the fork began with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from kit.damaged_configs import DAMAGES
from kit.first_line import BEGUN
from kit.hostile_templates import HOSTILE
from kit.processes import Command
from rankwise.runs.manifest import machine, versions

LONGEST = 60
DELAYS = (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.2, 3.2)


def resident(process: psutil.Process) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += one.memory_info().rss
    return total


def outcome(*words: object) -> dict[str, Any]:
    """A command in a fork: what it took, and what it said."""
    began = time.perf_counter()
    command = Command(*words)
    process, first, most = psutil.Process(command.pid), None, 0
    while command.poll() is None and time.perf_counter() - began < LONGEST:
        with suppress(psutil.Error):
            now = resident(process)
            first = now if first is None else first
            most = max(most, now - first)
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    if command.poll() is None:
        command.kill()
    _, err = command.communicate()
    return {
        "code": command.returncode, "seconds": round(seconds, 2), "megabytes": round(most / 1e6),
        "traceback": "Traceback" in err, "said": err.strip().splitlines()[-1][:200] if err.strip() else "",
    }  # fmt: skip


def copies(model: Path, change: Callable[[Path, str], None], names: list[str]) -> Iterator[tuple[str, Path]]:
    for name in names:
        folder = Path(tempfile.mkdtemp()) / "model"
        shutil.copytree(model, folder)
        change(folder, name)
        yield name, folder
        shutil.rmtree(folder.parent)


def on_files(model: Path, what: str) -> list[dict[str, Any]]:
    def template(folder: Path, name: str) -> None:
        (folder / "chat_template.jinja").write_text(HOSTILE[name])

    def config(folder: Path, name: str) -> None:
        DAMAGES[name](folder / "config.json")

    Command("--version").communicate()  # the process that is forked imports torch now
    change, names = (template, list(HOSTILE)) if what == "templates" else (config, list(DAMAGES))
    first = ["data", "check", "rows.jsonl"] if what == "templates" else ["plan", "--data", "rows.jsonl"]
    rows = []
    for name, folder in copies(model, change, names):
        for words in (
            [*first, "--model", folder],
            ["train", "--data", "rows.jsonl", "--steps", 1, "--run", "r", "--model", folder],
        ):
            made = outcome(*words)
            rows.append(
                {"case": name, "command": words[0], **made, "passed": made["code"] == 2 and not made["traceback"]}
            )
            shutil.rmtree("runs", ignore_errors=True)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def command_lines(model: Path) -> list[list[str]]:
    train = ["train", "--model", str(model), "--data", "rows.jsonl", "--steps", "300", "--restart", "--run"]
    more = [
        ["--help"], ["--version"], ["models"], ["doctor"], ["cache"], ["runs"], ["data", "check", "rows.jsonl"],
        ["data", "check", "rows.jsonl", "--model", str(model)], ["plan", "--model", str(model), "--data", "rows.jsonl"],
        [*train, "a"], [*train, "b", "--json"], ["generate", "done", "--prompt", "hi", "--max-new-tokens", "200"],
        ["evaluate", "done"], ["inspect", "done"], ["report", "done"],
        ["export", "done", "--to", "out", "--format", "merged"],
    ]  # fmt: skip
    return more


def interrupts(model: Path) -> list[dict[str, Any]]:
    words = ["train", "--model", str(model), "--data", "rows.jsonl", "--steps", "2", "--run", "done", "--quiet"]
    subprocess.run([sys.executable, "-m", "rankwise", *words], check=True)
    rows = []
    for words in command_lines(model):
        for delay in DELAYS:
            command = [sys.executable, "-c", BEGUN, *words]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(delay)
                process.send_signal(signal.SIGINT)
                try:
                    _, err = process.communicate(timeout=LONGEST)
                except subprocess.TimeoutExpired:
                    process.kill()
                    _, err = process.communicate()
            half = [path.name for path in Path().rglob("*.tmp")]
            shutil.rmtree("out", ignore_errors=True)
            passed = "Traceback" not in err and process.returncode in (0, 130, -signal.SIGINT) and not half
            rows.append({"case": " ".join(words[:3]), "delay": delay, "code": process.returncode, "left": half,
                         "said": err.strip().splitlines()[-1][:200] if err.strip() else "", "passed": passed}
                       )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["templates", "configs", "interrupts"])
    parser.add_argument("--model", type=Path, required=True, help="folder of a small model")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    out, model = given.out.absolute(), given.model.absolute()
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        os.environ["RANKWISE_CACHE"] = f"{home}/cache"
        rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(8)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = interrupts(model) if given.what == "interrupts" else on_files(model, given.what)
        os.chdir("/")
    passed = sum(row["passed"] for row in made)
    result = {
        "what": given.what,
        "passed": passed,
        "of": len(made),
        "machine": machine(),
        "versions": versions(),
        "cases": made,
    }
    text = json.dumps(result, indent=1, default=str).replace(f"{model.parent}/", "")
    out.with_suffix(".json").write_text(re.sub(rf"{tempfile.gettempdir()}/\w+/", "", text) + "\n")
    print(f"{passed} of {len(made)}")


if __name__ == "__main__":
    main()
