"""Try the reliability of trainings on this machine and disk: checks in turn until the time is over, and a table."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.models.random_model import write_random_model
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.selftest.bench import Bench
from rankwise.selftest.checks import CHECKS, Check

MOST_PROBLEMS = 5
"""Problems of one check that are listed."""


@dataclass
class CheckResult:
    name: str
    about: str
    tried: int = 0
    passed: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SelfTest:
    """`folder` has what the checks left, where one of them found a problem."""

    results: list[CheckResult]
    seconds: float
    folder: Path | None = None

    @property
    def passed(self) -> bool:
        return all(result.passed == result.tried for result in self.results)

    def summary(self) -> dict[str, Any]:
        """What `rankwise selftest --json` prints."""
        return {
            "passed": self.passed, "seconds": round(self.seconds, 1),
            "folder": None if self.folder is None else str(self.folder),
            "checks": [asdict(result) for result in self.results],
        }  # fmt: skip


def selftest(minutes: float, folder: Path, callback: Callback, *, seed: int = 0) -> SelfTest:
    """Every check is tried at least once, also where that takes longer than `minutes`."""
    if not folder.is_dir():
        raise ConfigError([f"--folder {folder} is not a folder."])
    inside = Path(tempfile.mkdtemp(prefix=".rankwise-selftest-", dir=folder.resolve()))
    began = time.monotonic()
    try:
        bench = Bench(inside)
        write_random_model(inside / "base")
        bench.prepare()
        callback(StatusMessage(f"trainings of a tiny random model in {inside}"))
        results = _in_turn(bench, 60 * minutes, random.Random(seed), callback)
    except BaseException:
        shutil.rmtree(inside, ignore_errors=True)
        raise
    done = SelfTest(results, time.monotonic() - began, inside)
    if not done.passed:
        return done
    shutil.rmtree(inside, ignore_errors=True)
    return SelfTest(results, done.seconds)


def _in_turn(bench: Bench, seconds: float, draw: random.Random, callback: Callback) -> list[CheckResult]:
    results = [CheckResult(check.name, check.about) for check in CHECKS]
    began, over = time.monotonic(), 0.0
    while over < seconds or not all(result.tried for result in results):
        for check, result in zip(CHECKS, results, strict=True):
            _try(check, result, bench, draw)
            over = time.monotonic() - began
            cases = sum(one.tried for one in results)
            callback(ProgressUpdate("Checking", cases, max(cases, round(cases * seconds / over)), "cases"))
    return results


def _try(check: Check, result: CheckResult, bench: Bench, draw: random.Random) -> None:
    problem = check.try_case(bench, draw)
    result.tried += 1
    if problem is None:
        result.passed += 1
    elif len(result.problems) < MOST_PROBLEMS:
        result.problems.append(problem)
