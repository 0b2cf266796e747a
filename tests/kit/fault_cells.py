"""What is done to a run, and what must come of it: the cells of the reliability tables, for tests and for bench.

Each cell disturbs a run in one way and lets it go on as a user would. It returns the problems, so none is good.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISREG

from kit.file_faults import Operation, PowerFailure
from kit.small_runs import DAMAGES, EVALUATE, EVERY, NAME, OWN, PARTS, RUN, STEPS, Outcome, Workshop, train_words
from rankwise.errors import RunError
from rankwise.runs.directory import ClaimedRun, RunDirectory
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.resumable import METRICS, Resumable

OLDER, NEWEST = STEPS // EVERY * EVERY - EVERY, STEPS // EVERY * EVERY
TORN = [*DAMAGES, "swapped"]


class Cells:
    """A workshop with a whole run's hash, and copies of a run that was killed after its last checkpoint."""

    def __init__(self, folder: Path, base: Path, *, without_page: bool = False) -> None:
        self.shop = Workshop(folder, base, without_page=without_page)
        self.stored = folder / "stored"
        if not (self.stored / "finished").is_dir():
            shutil.rmtree(self.stored, ignore_errors=True)
            self._store("other", "--seed", "1", "--held-out", "3")
            self._store("begun")
            assert self.shop.finish()[1].code == 0
            shutil.copytree(self.shop.run, self.stored / "finished")
        self._lay("finished")
        self.whole = self.shop.adapter()
        self.records = self._records()

    def _store(self, name: str, *words: str) -> None:
        self.shop.clear()
        self.shop.train_until(STEPS - 1, *words)
        shutil.copytree(self.shop.run, self.stored / name)

    def _lay(self, name: str | None) -> Path:
        self.shop.clear()
        if name is not None:
            shutil.copytree(self.stored / name, self.shop.run, symlinks=True)
        return self.shop.run

    def _records(self) -> list[dict[str, object]]:
        rows = read_metrics_log(self.shop.run / METRICS)
        return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second", "resident_bytes")}
                for row in rows]  # fmt: skip

    def _same(self) -> list[str]:
        """How the finished run differs from the undisturbed one."""
        if self.shop.adapter() != self.whole:
            return ["the adapter is another"]
        return [] if self._records() == self.records else ["the metrics log differs"]

    # R06

    def damage(self, part: str, damage: str, *, live: bool = False, both: bool = False) -> list[str]:
        """Damage a file of the newest checkpoint, or the run's own (`live`), or both; what is to be said of it."""
        run = self._lay("begun")
        newest, another = run / "checkpoints" / f"step-{NEWEST}", run / "checkpoints" / f"step-{OLDER}" / part
        if part in OWN and part != METRICS:  # all steps have the same
            another = self.stored / "other" / part
        for file in ([run / part] if live or both else []) + ([newest / part] if not live else []):
            shutil.copy(another, file) if damage == "swapped" else DAMAGES[damage](file)
        lines = [f"step-{NEWEST} was passed over: {part}: "] if not live else []
        if part == METRICS and damage == "swapped" and both:  # its first records are those of the older checkpoint
            return lines
        return lines + ([f"{RUN / part} was damaged"] if live or both else [])

    def torn(self, part: str, damage: str, **how: bool) -> list[str]:
        expected = self.damage(part, damage, **how)
        outcome = self.shop.command(*train_words("--resume"))
        lines = [line for line in outcome.text.splitlines() if line]
        problems = [] if outcome.code == 0 else [f"exit {outcome.code}"]
        if len(lines) != len(expected) or any(text not in line for text, line in zip(expected, lines, strict=False)):
            problems.append(f"said {lines}")
        return problems or self._same()

    # R04

    def operations(self, stage: str) -> list[Operation]:
        self._lay(STAGES[stage])
        return self.shop.operations(*words_of(stage))

    def fault(self, stage: str, number: int, mode: str) -> list[str]:
        """The operation fails in one of three ways; a message with a type, and the old state or the new one."""
        self._lay(STAGES[stage])
        outcome = self.shop.command(*words_of(stage), until=number, mode=mode)
        problems = []
        if not outcome.is_typed and not (mode == "death" and outcome.code == 9):
            problems.append(f"exit {outcome.code}: {outcome.text[-300:]}")
        return problems + (self._evaluated() if stage == "evaluate" else self.gone_on())

    def _evaluated(self) -> list[str]:
        outcome = self.shop.command(*EVALUATE)
        return ([] if outcome.code == 0 else [f"evaluating again: {outcome}"]) + self._same()

    def gone_on(self, at_least: int = 0) -> list[str]:
        """Whatever state the run is in, one of three commands takes it, and a checkpoint is not lost."""
        if self._is_finished():
            return self._same()
        step = self._newest()
        if step < at_least:
            return [f"the newest whole checkpoint is of step {step}, not {at_least}"]
        ways, outcome = self.shop.finish()
        if outcome.code:
            return [f"stuck after {ways}: {outcome}"]
        problems = [f"a checkpoint of step {step} was of no use: {ways}"] if step and "--restart" in ways else []
        return problems + self._same()

    def _is_finished(self) -> bool:
        with contextlib.suppress(OSError, ValueError, RunError), contextlib.chdir(self.shop.folder):
            return RunDirectory.named(NAME).manifest().status == "finished"
        return False

    def _newest(self) -> int:
        with contextlib.suppress(RunError, OSError), contextlib.chdir(self.shop.folder):
            return Resumable(ClaimedRun.named(NAME)).checkpoint.step
        return 0

    # R10, R19

    def refused(self, mode: str, part: float) -> list[str]:
        """From this part of the operations of a training on, the system refuses them; then it works again."""
        total = len(self.operations("train"))
        return self.fault("train", int(part * total), mode)

    def removed(self, name: str) -> list[str]:
        """A folder of the run is removed while it trains."""
        self._lay(None)
        outcome = self.shop.removed(7, name)
        if outcome.code == 0:
            return self._same()
        problems = [] if outcome.is_typed else [f"exit {outcome.code}: {outcome.text[-300:]}"]
        return problems + self.gone_on()

    def starved(self, where: str, count: int) -> list[str]:
        """Memory runs out: the message names settings that are forecast to fit, or to lower; the run goes on after."""
        self._lay(None)
        outcome = self.shop.starved(where, count)
        problems = [] if outcome.code == 4 and outcome.is_typed else [f"exit {outcome.code}: {outcome.text[-300:]}"]
        advice = ("These settings are forecast to fit:", "max_batch_tokens")
        problems += [] if any(one in outcome.text for one in advice) else [f"no advice: {outcome.text[-300:]}"]
        return problems + self.gone_on()

    # R05

    def power_failure(self, operations: list[Operation], count: int, seed: int) -> list[str]:
        """The power fails after so many operations of a whole training."""
        self._lay(None)
        folder = self.shop.folder / "runs"
        PowerFailure(str(folder), operations).write(count, folder, seed)
        return self.gone_on(at_least=_saved(operations[:count]))

    # R01, R02

    def killed(self, method: str, chance: random.Random) -> list[str]:
        """Killed at up to three random times, and resumed each time."""
        words, marker = long_words(method), self.stored / f"long-{method}"
        if not marker.exists():
            self.shop.clear()
            began = time.monotonic()
            assert self.shop.command(*words).code == 0
            shutil.copytree(self.shop.run, marker)
            (marker / "seconds").write_text(str(time.monotonic() - began))
        seconds = float((marker / "seconds").read_text())
        self.shop.clear()
        for _ in range(chance.randint(1, 3)):
            self._killed_after(chance.uniform(0.02, 1.0) * seconds, words)
        outcome = self._resumed(words)
        same = (self.shop.run / WEIGHTS).is_file() and (self.shop.run / WEIGHTS).read_bytes() == (
            marker / WEIGHTS
        ).read_bytes()
        problems = [] if outcome.code == 0 or self._is_finished() else [f"{outcome}"]
        steps = [row["step"] for row in read_metrics_log(self.shop.run / METRICS) if row["kind"] == "step"]
        problems += [] if steps == list(range(1, LONG + 1)) else [f"steps {steps}"]
        return problems + ([] if same else ["the adapter is another"])

    def _killed_after(self, seconds: float, words: list[str]) -> None:
        child = self.shop.started(*words, *(["--resume"] if self._newest() else ["--restart"]))
        child.process.join(seconds)
        child.process.kill()
        child.end()

    def _resumed(self, words: list[str]) -> Outcome:
        if self._is_finished():
            return Outcome(0, "")
        return self.shop.command(*words, *(["--resume"] if self._newest() else ["--restart"]))

    # R22, R23

    def two_at_once(self) -> list[str]:
        """Of two trainings of one run, one trains and the other names its process, whoever came first.

        The first one rests in the middle until the second one has ended. Then two begin at once: either may win, and
        on a busy machine the second may come after the end of the first.
        """
        self._lay(None)
        problems = list[str]()

        def second(process: int) -> None:
            outcome = self.shop.command(*train_words())
            named = outcome.is_typed and f"is being written by process {process}" in outcome.text
            problems.extend([] if outcome.code == 3 and named else [f"second: {outcome}"])

        first = self.shop.resting(STEPS // 2, second)
        problems += [] if first.code == 0 else [f"first: {first}"]
        return problems + self._same() + self._together()

    def _together(self) -> list[str]:
        self._lay(None)
        children = [self.shop.started(*train_words()) for _ in range(2)]
        outcomes = [child.end() for child in children]
        texts = [outcome.text for outcome in outcomes if outcome.code]
        trained = len(texts) == 1 and ("is being written by process" in texts[0] or " is finished" in texts[0])
        return ([] if trained else [f"{outcomes}"]) + self._same()

    def lock(self, name: str) -> list[str]:
        """Something lies where the lock should be: a rest is taken over, what is foreign is refused and stays."""
        if name.startswith("removed"):
            return self._unlocked(begun=name.endswith("another begins"))
        run = self._lay("begun")
        victim = self.shop.folder / "victim"
        victim.write_text("precious")
        lock = run / ".lock"
        lock.unlink(missing_ok=True)
        goes_on = LOCKS[name](lock, victim)
        before = None if goes_on else _kind(lock)
        outcome = self.shop.command(*train_words("--resume"))
        problems = [] if victim.read_text() == "precious" else ["the victim was changed"]
        if goes_on:
            return problems + ([] if outcome.code == 0 else [f"{outcome}"]) + self._same()
        problems += [] if outcome.code == 2 and outcome.is_typed and ".lock" in outcome.text else [f"{outcome}"]
        return problems + ([] if _kind(lock) == before else ["what lay there was changed"])

    def _unlocked(self, *, begun: bool) -> list[str]:
        self._lay(None)
        second: list[Outcome] = []

        def meanwhile() -> None:
            second.append(self.shop.command(*train_words("--resume")))

        outcome = self.shop.unlocked(5, meanwhile if begun else None)
        if not begun:
            return ([] if outcome.code == 0 else [f"{outcome}"]) + self._same()
        problems = [] if second[0].code == 0 else [f"the second: {second}"]
        problems += [] if outcome.code == 3 and outcome.is_typed and "removed" in outcome.text else [f"{outcome}"]
        return problems + ([] if self._is_finished() else ["it is not finished"]) + self._same()

    # R11

    def rotation(self, number: int) -> list[str]:
        """A process dies while checkpoints and snapshots are rotated, with what is not ours among them."""
        run = self._lay("rotating")
        strays = [run / "checkpoints" / "mine", run / "best" / "mine"]
        for stray in strays:
            stray.parent.mkdir(parents=True, exist_ok=True)
            stray.write_text("mine")
        before = self._newest()
        outcome = self.shop.command(*ROTATING, "--resume", until=number)
        problems = [] if outcome.code in (0, 9) else [f"exit {outcome.code}: {outcome.text[-300:]}"]
        if not self._is_finished():
            if self._newest() < before:
                problems.append(f"the newest checkpoint was {before} and is {self._newest()}")
            again = self.shop.command(*ROTATING, "--resume")
            problems += [] if again.code == 0 else [f"{again}"]
        problems += [] if all(stray.read_text() == "mine" for stray in strays) else ["what was not ours is gone"]
        return problems + ([] if self.shop.adapter() == self.rotated else ["the adapter is another"])

    def prepare_rotation(self) -> int:
        """The number of operations of the run that `rotation` disturbs."""
        if not (self.stored / "rotated").is_dir():
            self.shop.clear()
            self.shop.train_until(5, *ROTATING[len(train_words()) :])
            shutil.copytree(self.shop.run, self.stored / "rotating", dirs_exist_ok=True)
            assert self.shop.command(*ROTATING, "--resume").code == 0
            shutil.copytree(self.shop.run, self.stored / "rotated")
        self._lay("rotated")
        self.rotated = self.shop.adapter()
        self._lay("rotating")
        return len(self.shop.operations(*ROTATING, "--resume"))

    # R12

    def lie(self, name: str) -> list[str]:
        """Names and clocks lie: the right step is taken, and what is not ours stays."""
        run = self._lay("begun")
        stray, step, lines = LIES[name](run / "checkpoints")
        before = _state(stray) if stray is not None else None
        outcome = self.shop.command(*train_words("--resume").copy())
        problems = [] if outcome.code == 0 else [f"exit {outcome.code}: {outcome.text[-300:]}"]
        if stray is not None and _state(_where(stray)) != before:
            problems.append("what was not ours is gone")
        lines_said = [line for line in outcome.text.splitlines() if line]
        if len(lines_said) != lines:
            problems.append(f"said {lines_said}")
        resumed = json.loads((run / "manifest.json").read_text())["resumed"]
        if [one["step"] for one in resumed] != [step]:
            problems.append(f"resumed from {resumed}")
        return problems or self._same()


ROTATING = train_words(
    "--set", "training.checkpoint_steps=2", "--validate-every", 1, "--set", "validation.keep=best",
    "--keep-checkpoints", 2,
)  # fmt: skip
"""A run that stores its best step so far beside its checkpoints, and removes one of each in nearly every step."""
STAGES: dict[str, str | None] = {"train": None, "resume": "begun", "restart": "begun", "evaluate": "finished"}
"""What a run is before each stage."""


def words_of(stage: str) -> list[str]:
    return EVALUATE if stage == "evaluate" else train_words(*([] if stage == "train" else [f"--{stage}"]))


LONG = 40
WEIGHTS = "adapter/adapter_model.safetensors"


def long_words(method: str) -> list[str]:
    words = train_words(steps=LONG, every=4)
    if method == "adalora":
        at = words.index("--rank")
        words[at : at + 2] = ["--method", "adalora", "--budget", "2"]
    return words


def _bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):  # a long path is refused
        one.bind(path.name)


def _laid(make: Callable[[Path, Path], object], *, goes_on: bool) -> Callable[[Path, Path], bool]:
    def lay(lock: Path, victim: Path) -> bool:
        make(lock, victim)
        return goes_on

    return lay


def _never(lock: Path, victim: Path) -> bool:
    raise AssertionError("it has a way of its own")


REFUSED = [(mode, part) for mode in ("EACCES", "EROFS", "EMFILE") for part in (0.0, 0.5, 0.9)]
REMOVED = ("checkpoints", "data_report.json", ".")
"""What of a run is removed in the middle; with the last, all of it."""
STARVING = [
    ("a step", 1),
    ("a step", 6),
    ("a step", 11),
    *((where, n) for where in ("validation", "saving") for n in (1, 2, 3)),
]
LOCKS: dict[str, Callable[[Path, Path], bool]] = {
    "nothing": _laid(lambda lock, victim: None, goes_on=True),
    "of a process that is dead": _laid(lambda lock, victim: lock.write_text(" 4194303"), goes_on=True),
    "of a number in use again": _laid(lambda lock, victim: lock.write_text(" 1"), goes_on=True),
    "empty": _laid(lambda lock, victim: lock.touch(), goes_on=True),
    "garbage": _laid(lambda lock, victim: lock.write_bytes(bytes(range(200, 230))), goes_on=True),
    "zeros": _laid(lambda lock, victim: lock.write_bytes(bytes(6)), goes_on=True),
    "a link": _laid(lambda lock, victim: lock.symlink_to(victim), goes_on=False),
    "a link to nowhere": _laid(lambda lock, victim: lock.symlink_to("nowhere"), goes_on=False),
    "a hard link": _laid(lambda lock, victim: lock.hardlink_to(victim), goes_on=False),
    "a pipe": _laid(lambda lock, victim: os.mkfifo(lock), goes_on=False),
    "a folder": _laid(lambda lock, victim: lock.mkdir(), goes_on=False),
    "a socket": _laid(lambda lock, victim: _bound(lock), goes_on=False),
    "a text": _laid(lambda lock, victim: lock.write_text("precious " * 20), goes_on=False),
    "removed in training": _never,
    "removed in training, and another begins": _never,
}
"""What lies there, and whether the training goes on."""


def _kind(path: Path) -> object:
    mode = path.lstat().st_mode
    return mode, path.read_bytes() if S_ISREG(mode) else None


def _saved(operations: list[Operation]) -> int:
    """The step of the last checkpoint whose name was flushed to the disk."""
    step = pending = 0
    for one in operations:
        head, _, name = one.other.rpartition(os.sep)
        if one.kind == "rename" and head.endswith("checkpoints") and name.startswith("step-"):
            pending = int(name.removeprefix("step-"))
        elif one.kind == "flush" and one.path.endswith("checkpoints"):
            step = pending
    return step


Lie = Callable[[Path], tuple[Path | None, int, int]]


def _stray(name: str, make: Callable[[Path], object], step: int = NEWEST, lines: int = 1) -> Lie:
    """A stray of this name, the step to go on from, and the lines to be said."""

    def lie(folder: Path) -> tuple[Path, int, int]:
        make(folder / name)
        return folder / name, step, lines

    return lie


def _copied(of: int) -> Callable[[Path], object]:
    return lambda path: shutil.copytree(path.with_name(f"step-{of}"), path)


def _clocks(folder: Path) -> tuple[None, int, int]:
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, (0, 0) if number % 2 else (4e9, 4e9))
    return None, NEWEST, 0


def _renamed(folder: Path) -> tuple[Path, int, int]:
    (folder / f"step-{NEWEST}").rename(folder / "step-10")
    return folder / "step-10", OLDER, 1


def _linked(folder: Path) -> tuple[Path, int, int]:
    (folder / f"step-{NEWEST}").rename(folder.parent / "elsewhere")
    (folder / f"step-{NEWEST}").symlink_to(folder.parent / "elsewhere")
    return folder / f"step-{NEWEST}", OLDER, 1


LIES: dict[str, Lie] = {
    "an empty folder of a far step": _stray("step-99999999", Path.mkdir),
    "a file of a far step": _stray("step-99999999", lambda path: path.write_text("mine")),
    "a link to a far step": _stray("step-99999999", lambda path: path.symlink_to(f"step-{OLDER}")),
    "a link to nowhere": _stray("step-99999999", lambda path: path.symlink_to("nowhere")),
    "a pipe": _stray("step-99999999", os.mkfifo),
    "a copy of a step as a far one": _stray("step-99999999", _copied(OLDER)),
    "a copy by a file manager": _stray(f"step-{NEWEST} (copy)", _copied(NEWEST), lines=0),
    "a step with zeros before": _stray(f"step-0{NEWEST}", _copied(OLDER), lines=0),
    "another folder": _stray("step-", Path.mkdir, lines=0),
    "a file named latest": _stray("LATEST", lambda path: path.write_text("../../elsewhere"), lines=0),
    "a link named latest": _stray("latest", lambda path: path.symlink_to("/"), lines=0),
    "clocks": _clocks,
    "the newest renamed": _renamed,
    "the newest a link": _linked,
}
"""Lies about a run whose newest checkpoints are OLDER and NEWEST."""


def _where(stray: Path) -> Path:
    """Where it is now: what was in the way of a step has another name."""
    aside = stray.with_name(f"{stray.name}.aside-1")
    return aside if os.path.lexists(aside) else stray


def _state(path: Path) -> object:
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    return path.read_bytes() if path.is_file() else path.exists()


def torn_cells() -> Iterator[tuple[str, str, dict[str, bool]]]:
    for part in PARTS:
        for damage in TORN:
            yield part, damage, {}
    for how in ("live", "both"):
        for part in OWN:
            for damage in TORN:
                yield part, damage, {how: True}
