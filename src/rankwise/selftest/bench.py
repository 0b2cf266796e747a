"""Trainings of one tiny model in a folder of the user's disk, and what each must end with.

A training of 60 steps saves every 5. Whatever is done to it, it must end with the bytes that the same training has when
nobody disturbs it, and have each step in its log once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from rankwise.errors import TrainingError
from rankwise.selftest.failing import Fault
from rankwise.selftest.processes import Command

STEPS, EVERY = 60, 5
METHODS: Mapping[str, tuple[str, ...]] = {
    "lora": ("--rank", "2", "--dropout", "0.1"),
    "adalora": ("--method", "adalora", "--budget", "2"),
}
ROWS = 40
LONGEST = 120.0
"""Seconds after which a command counts as hanging."""


@dataclass
class Bench:
    """`folder` has the model `base` and the rows `rows.jsonl`."""

    folder: Path
    _number: int = 0
    _references: dict[str, tuple[str, float]] = field(default_factory=dict)

    def prepare(self) -> None:
        lines = [json.dumps({"prompt": f"{number} and {number} are", "completion": f"{2 * number}"})
                 for number in range(ROWS)]  # fmt: skip
        (self.folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def new_name(self) -> str:
        self._number += 1
        return f"run-{self._number}"

    def begin(self, name: str, *more: str, method: str = "lora", fault: Fault | None = None) -> Command:
        return Command(
            "train", "--model", "base", "--data", "rows.jsonl", "--run", name, "--steps", STEPS, "--batch-size", 4,
            "--learning-rate", "1e-3", "--set", f"training.checkpoint_steps={EVERY}", *METHODS[method], *more,
            folder=self.folder, fault=fault, out=self.folder,
        )  # fmt: skip

    def ask(self, name: str) -> Command:
        """Have a finished run answer."""
        return Command(
            "generate", name, "--prompt", "1 and 1 are", "--max-new-tokens", 2, folder=self.folder, out=self.folder
        )

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def go_on(self, name: str, method: str = "lora") -> str | None:
        """Finish a run as a user would: with --resume, else without, else from the beginning. What is wrong, if
        anything."""
        texts = []
        if self.is_finished(name):
            return None
        for way in ("--resume", "", "--restart"):
            command = self.begin(name, *filter(None, [way]), method=method)
            problem, text = outcome(command)
            if command.returncode == 0:
                return None
            texts.append(f"{way or 'plain'}: {problem or text}")
            if problem is not None:
                break
        return "the run cannot be finished. " + " | ".join(texts)

    def is_finished(self, name: str) -> bool:
        manifest = self.run(name) / "manifest.json"
        return manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("status") == "finished"

    def result_of(self, name: str) -> str:
        """A hash of what was learned, and of the steps in the log."""
        digest = sha256((self.run(name) / "adapter" / "adapter_model.safetensors").read_bytes())
        return f"{digest.hexdigest()} {_steps_of(self.run(name) / 'metrics.jsonl')}"

    def undisturbed(self, method: str = "lora") -> tuple[str, float]:
        """The result that every training must have, and the seconds it took."""
        if method not in self._references:
            name, began = f"undisturbed-{method}", time.monotonic()
            command = self.begin(name, method=method)
            problem, text = outcome(command)
            if command.returncode != 0:
                raise TrainingError(f"an undisturbed training fails, so nothing can be compared: {problem or text}")
            self._references[method] = self.result_of(name), time.monotonic() - began
        return self._references[method]

    def differs(self, name: str, method: str = "lora") -> str | None:
        """Finish the run; what is wrong with its result, if anything."""
        if (problem := self.go_on(name, method)) is not None:
            return problem
        if self.result_of(name) != self.undisturbed(method)[0]:
            return "the result differs from that of an undisturbed training"
        return None


def outcome(command: Command) -> tuple[str | None, str]:
    """Wait for a command. A traceback or no end is a problem; beside it, the last line that it printed."""
    try:
        printed = "\n".join(command.communicate(LONGEST))
    except TimeoutError:
        command.kill()
        return f"no end after {LONGEST:.0f} seconds", ""
    lines = [line for line in printed.splitlines() if line.strip()] or [f"exit code {command.returncode}"]
    return ("a traceback: " + lines[-1] if "Traceback (most recent call last)" in printed else None), lines[-1]


def _steps_of(log: Path) -> str:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    return "each step once" if steps == list(range(1, STEPS + 1)) else f"steps {steps}"
