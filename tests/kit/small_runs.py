"""A run of a second, with checkpoints, that tests of faults disturb in every way and let go on.

`Workshop(folder, base)` is a working folder with a tiny model and rows. Its commands run in forked processes, with or
without file operations that fail, and are judged by exit code, messages and the bytes of the adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kit.damage import DAMAGES as KINDS
from kit.damage import damage
from kit.file_faults import Operation, watched
from kit.library import rows
from kit.processes import WARM
from rankwise.runs.own_files import FACTS, TENSORS, hash_of

STEPS, EVERY = 11, 3
"""Checkpoints after steps 3, 6 and 9, of which the last two are there."""
NAME = "r"
OWN = ("config.json", "manifest.json", "data_report.json", "metrics.jsonl")
PARTS = ("state.json", "state.safetensors", *OWN)
RUN = Path("runs") / NAME


def train_words(*words: object, steps: int = STEPS, every: int = EVERY) -> list[str]:
    given = (
        "train", "--model", "base", "--data", "rows.jsonl", "--run", NAME, "--batch-size", 2, "--rank", 2, "--targets",
        "q_proj,v_proj", "--steps", steps, "--backend", "eager", "--learning-rate", 0.01, "--dropout", 0.2,
        "--held-out", 2, "--set", f"training.checkpoint_steps={every}", "--quiet", "--force-memory",
    )  # fmt: skip
    return [str(word) for word in (*given, *words)]


EVALUATE = ["evaluate", NAME, "--no-forgetting", "--no-base", "--quiet"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended. A process that was killed has the negative number of the signal."""

    code: int
    text: str
    """What it wrote on stderr."""

    @property
    def is_typed(self) -> bool:
        """No traceback: success, or one message and one of the promised exit codes."""
        return "Traceback" not in self.text and (
            self.code == 0 or (self.code in (1, 2, 3, 4, 130) and self.text.count("rankwise: ") == 1)
        )


class Workshop:
    def __init__(self, folder: Path, base: Path, *, without_page: bool = False) -> None:
        self.folder, self.without_page = folder, without_page
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(base, folder / "base", dirs_exist_ok=True)
        (folder / "rows.jsonl").write_text(rows(9))

    @property
    def run(self) -> Path:
        return self.folder / RUN

    def clear(self) -> None:
        shutil.rmtree(self.folder / "runs", ignore_errors=True)

    def command(self, *words: str, until: int | None = None, mode: str = "death") -> Outcome:
        """A command whose file operation number `until` under runs/ fails."""
        return self.started(*words, until=until, mode=mode).end()

    def started(self, *words: str, until: int | None = None, mode: str = "death") -> Child:
        return self._begun(words, until=until, mode=mode)

    def _begun(self, words: Sequence[str], **how: Any) -> Child:
        return Child(Job(str(self.folder), tuple(words), without_page=self.without_page, **how))

    def operations(self, *words: str) -> list[Operation]:
        """What a command does to files under runs/."""
        record = self.folder / "operations"
        outcome = self._begun(words, record=str(record)).end()
        assert outcome.code == 0, outcome
        return pickle.loads(record.read_bytes())  # noqa: S301  our own child wrote it

    def train_until(self, step: int, *words: str) -> None:
        """Train, and be killed after a step."""
        outcome = self._begun(train_words(*words), last_step=step).end()
        assert outcome.code == -signal.SIGKILL, outcome

    def unlocked(self, step: int, meanwhile: Callable[[], None] | None = None) -> Outcome:
        """Train while the lock file is removed after a step, and something happens `meanwhile`."""
        if meanwhile is not None:
            return self.resting(step, lambda process: meanwhile(), removes=".lock")
        return self.removed(step, ".lock")

    def removed(self, step: int, name: str) -> Outcome:
        """Train while this file or folder of the run is removed after a step."""
        return self._begun(train_words(), last_step=step, removes=name).end()

    def resting(self, step: int, meanwhile: Callable[[int], None], removes: str | None = None) -> Outcome:
        """Train, and rest after a step until `meanwhile(process)` is over."""
        for name in ("rests", "go"):
            (self.folder / name).unlink(missing_ok=True)
        child = self._begun(train_words(), last_step=step, removes=removes, rests=True)
        while not (self.folder / "rests").exists() and child.process.is_alive():
            time.sleep(0.02)
        meanwhile(child.process.pid or 0)
        (self.folder / "go").touch()
        return child.end()

    def starved(self, where: str, count: int) -> Outcome:
        """Train while memory runs out in a computation (STARVED), when it is done for this time."""
        return self._begun(train_words(), starved=where, last_step=count).end()

    def finish(self) -> tuple[list[str], Outcome]:
        """Go on as a user would: plain, else with --resume, else with --restart; the ways that were tried."""
        ways: list[str] = []
        for way in ("plain", "--resume", "--restart"):
            ways.append(way)
            outcome = self.command(*train_words(*([] if way == "plain" else [way])))
            if outcome.code == 0 or not outcome.is_typed:
                break
        return ways, outcome

    def adapter(self) -> str | None:
        """The hash of the adapter's weights, None where there are none."""
        file = self.run / "adapter" / "adapter_model.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


@dataclass(frozen=True)
class Job:
    """A command in a working folder, and how it is disturbed."""

    folder: str
    words: tuple[str, ...]
    until: int | None = None
    mode: str = "death"
    record: str | None = None
    """The file for its operations."""
    last_step: int | None = None
    """The step after which it is killed; or a file or folder of its run is removed, or it rests, or both."""
    without_page: bool = False
    """No report is written, whose charts take a third of the time."""
    removes: str | None = None
    rests: bool = False
    """It says so by a file named rests, and waits for one named go."""
    starved: str | None = None
    """Where memory runs out, when that is computed for the time `last_step`."""

    def do(self) -> None:
        from rankwise.cli.main import app

        os.chdir(self.folder)
        if self.without_page:
            from rankwise.commands import train

            train.write_page = lambda *given: Path()
        if self.starved is not None:
            _starve(self.starved, self.last_step or 1)
        elif self.last_step is not None:
            self._after_step(self.last_step)
        disturbed = self.until is not None or self.record is not None
        with contextlib.ExitStack() as stack:
            if disturbed:
                records = self.record is not None
                watch = stack.enter_context(watched(Path("runs"), until=self.until, mode=self.mode, records=records))
                if self.record is not None:
                    stack.callback(lambda: Path(str(self.record)).write_bytes(pickle.dumps(watch.operations)))
            app([*self.words])

    def _after_step(self, step: int) -> None:
        from rankwise.training.hooks import SaveCheckpoints
        from rankwise.training.trainer import Trainer

        timed_step: Any = Trainer._timed_step

        def disturbed_step(trainer: Trainer) -> Any:
            record = timed_step(trainer)
            if trainer.state.step == step and any(isinstance(hook, SaveCheckpoints) for hook in trainer.hooks):
                self._disturb()
            return record

        Trainer._timed_step = disturbed_step

    def _disturb(self) -> None:
        if self.removes is None and not self.rests:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.removes is not None:
            there = RUN / self.removes
            shutil.rmtree(there) if there.is_dir() else there.unlink()
        if self.rests:
            Path("rests").touch()
            while not Path("go").exists():
                time.sleep(0.02)


STARVED = {
    "a step": ("rankwise.training.step", "_backward"),
    "validation": ("rankwise.training.validation", "sum_loss"),
    "saving": ("rankwise.training.checkpoints", "save_file"),
}


def _starve(where: str, count: int) -> None:
    """Let memory run out when this function is called for the time `count`."""
    module, name = STARVED[where]
    owner, calls = importlib.import_module(module), itertools.count(1)
    real = getattr(owner, name)

    def call(*given: Any) -> Any:
        if next(calls) == count:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
        return real(*given)

    setattr(owner, name, call)


class Child:
    """A process that does a job, forked from one that has the imports and has computed nothing."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(WARM)
        descriptor, self._text = tempfile.mkstemp(prefix="child-")
        os.close(descriptor)
        self.process = context.Process(target=_do, args=(job, self._text, dict(os.environ)))
        self.process.start()

    def end(self) -> Outcome:
        """Wait for it."""
        self.process.join()
        text = Path(self._text)
        outcome = Outcome(self.process.exitcode or 0, text.read_text(errors="replace"))
        text.unlink()
        self.process.close()
        return outcome


def _do(job: Job, text: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(text, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    job.do()


def as_first_format(checkpoint: Path) -> None:
    """A checkpoint as earlier versions wrote it: without copies of the run's files."""
    facts = json.loads((checkpoint / FACTS).read_text())
    for name in facts["files"]:
        if name != TENSORS:
            (checkpoint / name).unlink()
    first = {key: facts[key] for key in ("step", "steps", "allocator")}
    first |= {"format": 1, "tensors": facts["files"][TENSORS]}
    (checkpoint / FACTS).write_text(json.dumps(first | {"sha256": hash_of(first)}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    name: partial(damage, kind=kind)
    for name, kind in zip(("missing", "empty", "half", "zeros", "one bit"), KINDS, strict=False)
}
