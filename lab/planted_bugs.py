"""Forty planted bugs: do the tests catch them?

    python lab/planted_bugs.py --out bugs.jsonl                  this tree
    python lab/planted_bugs.py --tree ../other --out bugs.jsonl  another checkout
    python lab/planted_bugs.py --out bugs.jsonl --table          print what was measured, and run nothing
    python lab/planted_bugs.py --bugs lab/planted_in_the_house.toml --out bugs.jsonl

The bugs are in planted_bugs.toml, or in another list of that form. The tree is copied, one bug at a time is planted in
the copy, and pytest stops at the first test that fails. A bug counts as caught only if that test passes without the
bug. Each result is one line of the output file, and bugs that have a line there are not planted again unless they are
named, so an interrupted measurement goes on.
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
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

BUGS = Path(__file__).with_suffix(".toml")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)
OUTCOMES = {True: "caught", False: "not caught", None: "not run"}
LONGEST = 1800
"""Seconds for one call of pytest."""
FLAKY = 5
"""Failures without the bug that are deselected before a measurement is given up."""


@dataclass(frozen=True)
class Bug:
    id: str
    folder: str
    what: str
    line: str
    bug: str
    tests: Sequence[str]
    more: Sequence[str] = ()
    after: str | None = None
    bug_after: str | None = None

    @property
    def forms(self) -> list[tuple[str, str]]:
        """The line as it reads in some version, with the bug in it; the newest first."""
        newer = [(self.after, self.bug_after)] if self.after is not None and self.bug_after is not None else []
        return [*newer, (self.line, self.bug)]


@dataclass(frozen=True)
class Result:
    """`caught` is None where the bug could not be planted or its tests not be run; `why` says so."""

    id: str
    tree: str
    file: str
    caught: bool | None
    by: str
    seconds: float
    why: str = ""


def read_bugs(file: Path, only: list[str]) -> list[Bug]:
    """Those that are named, or all."""
    listed = [Bug(**one) for one in tomllib.loads(file.read_text(encoding="utf-8"))["bugs"]]
    if unknown := set(only) - {bug.id for bug in listed}:
        raise SystemExit(f"{file.name} has no bug {', '.join(sorted(unknown))}")
    return [bug for bug in listed if not only or bug.id in only]


def occurrence(tree: Path, bug: Bug) -> tuple[Path, str, str] | str:
    """The file with the line, the line, and the bug; or why it cannot be planted."""
    texts = {file: file.read_text(encoding="utf-8") for file in sorted((tree / "src").rglob("*.py"))}
    for line, replacement in bug.forms:
        files = [file for file, text in texts.items() for _ in range(text.count(line))]
        if len(files) == 1:
            return files[0], line, replacement
    return f"no form of the line occurs exactly once under src; give `after` in the list of bugs: {bug.line}"


def resolved(tree: Path, names: Sequence[str]) -> list[str]:
    """Test files by their paths below tests/, or where they have moved to: as listed, or by a name that is unique.

    A name may end with one of the file's tests, `::test_…`.
    """
    moved, paths = tomllib.loads(BUGS.read_text(encoding="utf-8"))["moved"], []
    for name, separator, test in (listed.partition("::") for listed in names):
        same = [*(tree / "tests").rglob(Path(name).name)]
        candidates = [tree / "tests" / name, tree / "tests" / moved.get(name, name), *(same if len(same) == 1 else ())]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"tests/{name} is not there; add its new path under `moved` in {BUGS.name}")
        paths.append(f"{path.relative_to(tree)}{separator}{test}")
    return paths


def first_failure(tree: Path, tests: list[str], deselected: list[str]) -> str | None:
    """The first test that fails, by its node id."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--no-header", "--tb=no", *tests]
    command += [word for name in deselected for word in ("--deselect", name)]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "COLUMNS": "400", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
    )
    if done.returncode == 0:
        return None
    failed = FAILED.search(done.stdout)
    if failed is None:
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    return failed[1]


def put(file: Path, text: str) -> None:
    """Write a source file, and forget what was compiled from it: a file of one size and second looks unchanged."""
    file.write_text(text, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()


def catcher(tree: Path, file: Path, texts: tuple[str, str], tests: list[str]) -> str | None:
    """The test that fails with the bug and passes without it. `texts` are the file without and with the bug."""
    deselected: list[str] = []
    while len(deselected) <= FLAKY:
        try:
            put(file, texts[1])
            failed = first_failure(tree, tests, deselected)
        finally:
            put(file, texts[0])
        if failed is None or first_failure(tree, [failed], []) is None:
            return failed
        deselected.append(failed)
    raise RuntimeError(f"these fail without the bug too: {', '.join(deselected)}")


def measure(tree: Path, bug: Bug, name: str) -> Result:
    began = time.monotonic()
    planted = occurrence(tree, bug)
    if isinstance(planted, str):
        return Result(bug.id, name, "", None, "", 0.0, planted)
    file, line, replacement = planted
    original = file.read_text(encoding="utf-8")
    texts = original, original.replace(line, replacement)
    relative, by, why = str(file.relative_to(tree)), None, ""
    try:
        for names in filter(None, (bug.tests, bug.more)):
            by = by or catcher(tree, file, texts, resolved(tree, names))
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        why = str(error)
    caught = None if why else by is not None
    return Result(bug.id, name, relative, caught, by or "", round(time.monotonic() - began, 1), why)


def copied(tree: Path, target: Path) -> Path:
    shutil.copytree(tree, target, ignore=LEFT_OUT, symlinks=True)
    return target


def commit_of(tree: Path) -> str:
    done = subprocess.run(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or str(tree)


def results_in(file: Path) -> list[Result]:
    """The last result of each bug."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [*{one.id: one for one in (Result(**json.loads(line)) for line in lines)}.values()]


def row_of(result: Result) -> str:
    return f"{result.id:<28}{OUTCOMES[result.caught]:<12}{result.seconds:>7.1f} s  {result.by or result.why}"


def print_table(results: list[Result]) -> None:
    print("\n" + "\n".join(map(row_of, results)))
    counts = {name: sum(one.caught is caught for one in results) for caught, name in OUTCOMES.items()}
    print(f"{len(results)} bugs: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Plant bugs one at a time, and tell which tests catch them.")
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to measure")
    parser.add_argument("--bugs", type=Path, default=BUGS, help="the list of bugs")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; bugs with a result there are skipped")
    parser.add_argument("--jobs", type=int, default=1, help="bugs to plant at the same time, each in its own copy")
    parser.add_argument("--table", action="store_true", help="print the results that are there, and run nothing")
    parser.add_argument("ids", nargs="*", help="bugs to plant, even if they have a result; without it all others")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP):  # a shell ignores them for what runs in its background
        signal.signal(number, signal.SIG_DFL)
    tree, name = options.tree.resolve(), commit_of(options.tree)
    data = tree.parent / "shared" / "data"
    if data.is_dir():
        os.environ.setdefault("RANKWISE_DATA", str(data))
    ready = set() if options.ids else {one.id for one in results_in(options.out) if one.caught is not None}
    waiting = [] if options.table else [bug for bug in read_bugs(options.bugs, options.ids) if bug.id not in ready]
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(options.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs if waiting else 0):
            copies.put(copied(tree, Path(home) / f"copy-{number}" / "tree"))

        def in_a_copy(bug: Bug) -> Result:
            copy = copies.get()
            try:
                return measure(copy, bug, name)
            finally:
                copies.put(copy)

        for future in as_completed([pool.submit(in_a_copy, bug) for bug in waiting]):
            result = future.result()
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(row_of(result), flush=True)
    print_table(results_in(options.out))


if __name__ == "__main__":
    main()
