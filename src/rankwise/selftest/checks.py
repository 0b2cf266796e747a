"""What is done to a training, or to what it wrote. Each check draws one case and says what is wrong, or None.

    R01, R02  kill        kill -9 at random times, up to three times in a run
    R04       disk        one operation of the disk fails, or the process dies in it
    R06       checkpoint  the newest checkpoint is damaged, and an older one is there
    R22       rivals      two trainings of one name begin together
    R26       adapter     a finished adapter is damaged, and somebody asks it

The numbers are those of the project's tests of reliability.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankwise.selftest.bench import Bench, outcome
from rankwise.selftest.damage import DAMAGES, damage
from rankwise.selftest.failing import KINDS, Fault

STOPPED, SAVED = "stopped", "checkpoints/step-*"


@dataclass(frozen=True)
class Check:
    name: str
    about: str
    try_case: Callable[[Bench, random.Random], str | None]


def killed(bench: Bench, draw: random.Random) -> str | None:
    method = draw.choice(["lora", "adalora"])
    name, (_, seconds) = bench.new_name(), bench.undisturbed(method)
    for attempt in range(draw.randint(1, 3)):
        command = bench.begin(name, *["--resume"] * bool(attempt and _has_steps(bench.run(name))), method=method)
        time.sleep(draw.uniform(0, seconds))
        command.kill()
        outcome(command)
    return bench.differs(name, method)


def failing_disk(bench: Bench, draw: random.Random) -> str | None:
    name = bench.new_name()
    fault = Fault(draw.randint(1, _operations(bench)), draw.choice(KINDS))
    command = bench.begin(name, fault=fault)
    problem, _ = outcome(command)
    if problem is not None:
        return f"operation {fault.number}, {fault.kind}: {problem}"
    if (problem := bench.differs(name)) is not None:
        return f"operation {fault.number}, {fault.kind}: {problem}"
    return None


def _operations(bench: Bench) -> int:
    """Operations of an undisturbed training, counted once."""
    count = bench.folder / "operations"
    if not count.exists():
        outcome(bench.begin("counted", fault=Fault(0, KINDS[0], count)))
    return int(count.read_text())


def damaged_checkpoint(bench: Bench, draw: random.Random) -> str | None:
    stop_halfway(bench)
    folders = sorted(bench.run(STOPPED).glob(SAVED), key=lambda one: int(one.name.partition("-")[2]))
    if len(folders) < 2:
        return f"the run has {len(folders)} checkpoint, and two are needed to fall back"
    file = draw.choice(sorted(one for one in folders[-1].iterdir() if one.is_file()))
    kind = draw.choice(DAMAGES)
    damage(file, kind, other=folders[-2] / file.name)
    command = bench.begin(STOPPED, "--resume")
    problem, text = outcome(command)
    if problem or command.returncode != 0:
        return f"{file.name} {kind}: {problem or text}"
    if bench.result_of(STOPPED) != bench.undisturbed()[0]:
        return f"{file.name} {kind}: the result differs from that of an undisturbed training"
    return None


def stop_halfway(bench: Bench) -> None:
    """Make runs/stopped one that was killed in the middle and has its checkpoints; it is made once and copied."""
    copy, run = bench.folder / STOPPED, bench.run(STOPPED)
    while not copy.exists():
        shutil.rmtree(run, ignore_errors=True)
        command = bench.begin(STOPPED)
        while command.poll() is None and not any(run.glob("checkpoints/step-3?")):
            time.sleep(0.001)
        command.kill()
        outcome(command)
        if _has_steps(run):
            run.rename(copy)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(copy, run, ignore=shutil.ignore_patterns("*.tmp"))


def rivals(bench: Bench, draw: random.Random) -> str | None:
    name = bench.new_name()
    first = bench.begin(name)
    time.sleep(draw.uniform(0, 0.01))
    commands = [first, bench.begin(name)]
    ends = [outcome(command) for command in commands]
    if problem := next((problem for problem, _ in ends if problem is not None), None):
        return problem
    codes = sorted(command.returncode or 0 for command in commands)
    if codes[0] != 0 or codes[1] == 0:
        return f"one of two should train; their exit codes were {codes}"
    return None if bench.result_of(name) == bench.undisturbed()[0] else "the result of the one that trained differs"


def damaged_adapter(bench: Bench, draw: random.Random) -> str | None:
    bench.undisturbed()
    name = bench.new_name()
    shutil.copytree(bench.run("undisturbed-lora"), bench.run(name))
    adapter = bench.run(name) / "adapter"
    file = draw.choice(sorted(adapter.glob("adapter_*")))
    kind = draw.choice([kind for kind in DAMAGES if kind != "exchanged with an older one"])
    damage(file, kind)
    command = bench.ask(name)
    problem, text = outcome(command)
    if problem or command.returncode != 2:
        return f"{file.name} {kind}: {problem or f'exit code {command.returncode}, {text}'}"
    return None


def _has_steps(run: Path) -> bool:
    return any(run.glob(SAVED))


CHECKS = (
    Check("kill", "kill -9 at any time, up to three times in a run; then --resume", killed),
    Check("disk", "an operation of the disk fails, or the process dies in it", failing_disk),
    Check("checkpoint", "the newest checkpoint is damaged; an older one is taken", damaged_checkpoint),
    Check("rivals", "two trainings of one name begin together; one trains", rivals),
    Check("adapter", "a finished adapter is damaged; it is refused", damaged_adapter),
)
