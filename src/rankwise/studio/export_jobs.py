"""Exports as processes of their own: `exports/.studio/ID/{job.json, printed.json, log.txt, hashes.json}`.

An export loads a model and asks engines, which takes minutes and memory; in its own process it outlives the page, and
frees everything at its end. What it prints is what the page shows, read from these files alone.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.base import Config
from rankwise.errors import RunError
from rankwise.runs.manifest import now
from rankwise.runs.own_files import read_json
from rankwise.runs.queue import last_object
from rankwise.system.files import json_bytes, make_folders, sha256_of, write_atomic
from rankwise.system.hub import NO_NETWORK
from rankwise.system.processes import began, start_detached

EXPORTS = Path("exports")
JOBS = EXPORTS / ".studio"
LOG_BYTES = 20_000


class Job(Config):
    """`words` are the command line behind `rankwise`."""

    id: str
    run: str
    to: str
    format: str
    words: tuple[str, ...]
    started: str
    process: int
    began: float | None


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class State:
    """`printed` is the object that `export --json` prints, None as long as the export runs."""

    job: Job
    running: bool
    printed: dict[str, Any] | None
    log: str

    @property
    def problem(self) -> str | None:
        if self.printed is not None:
            return str(self.printed["error"]) if "error" in self.printed else None
        return None if self.running else "The export was stopped before it was finished."

    @property
    def done(self) -> bool:
        return self.printed is not None and self.problem is None

    @property
    def engines(self) -> list[tuple[str, dict[str, Any]]]:
        """What engines said, those that ran first."""
        found = (self.printed or {}).get("engines")
        rows = list(found.items()) if isinstance(found, dict) else []
        return sorted(rows, key=lambda row: (row[1].get("by") != "run", row[0]))


_starting = threading.Lock()


def start(run: str, to: Path, format: str, options: Sequence[str]) -> Job:
    """RunError while another export runs. Of two that are wanted at once, one begins."""
    with _starting:
        if (other := next((one for one in states() if one.running), None)) is not None:
            raise RunError(
                f"{other.job.to} is being exported. Wait for it, since each export needs the memory of a model."
            )
        words = ("export", run, "--to", str(to), "--format", format, *options, "--json")
        number = secrets.token_hex(8)
        folder = JOBS / number
        make_folders(folder)
        with (folder / "printed.json").open("wb") as printed, (folder / "log.txt").open("wb") as log:
            command = [sys.executable, "-P", "-m", "rankwise", *words]
            process = start_detached(command, out=printed, log=log, environment=NO_NETWORK)
        job = Job(
            id=number, run=run, to=str(to), format=format, words=words, started=now(), process=process.pid,
            began=began(process.pid),
        )  # fmt: skip
        write_atomic(folder / "job.json", json_bytes(job.model_dump(mode="json")))
        return job


def state_of(number: str) -> State:
    """RunError where there is no such export."""
    folder = JOBS / number
    if not re.fullmatch(r"[0-9a-f]{16}", number) or not (folder / "job.json").is_file():
        raise RunError("there is no such export.")
    job = read_json(folder / "job.json", Job)
    running = job.began is not None and began(job.process) == job.began
    return State(job, running, last_object(folder / "printed.json") if not running else None, _log(folder))


def _log(folder: Path) -> str:
    with suppress(OSError):
        content = (folder / "log.txt").read_bytes()[-LOG_BYTES:].decode("utf-8", "replace")
        return "\n".join(line.rpartition("\r")[2] for line in content.splitlines() if line.strip())
    return ""


def states() -> list[State]:
    """The newest first."""
    found: list[State] = []
    for file in JOBS.glob("*/job.json"):
        with suppress(RunError):
            found.append(state_of(file.parent.name))
    return sorted(found, key=lambda one: (one.job.started, one.job.id), reverse=True)


def files_of(state: State) -> list[File]:
    """What an export wrote, each with its hash, which is computed once."""
    to, kept = Path(state.job.to), JOBS / state.job.id / "hashes.json"
    paths = [to] if to.is_file() else sorted(one for one in to.rglob("*") if one.is_file() and not one.is_symlink())
    known = _known(kept)
    files = [_file(path, path.name if path == to else path.relative_to(to).as_posix(), known) for path in paths]
    hashes = {one.name: [one.sha256, one.bytes] for one in files}
    if hashes != known:
        write_atomic(kept, json.dumps(hashes).encode())
    return files


def _known(file: Path) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads(file.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def _file(path: Path, name: str, known: dict[str, list[Any]]) -> File:
    size, before = path.stat().st_size, known.get(name)
    if isinstance(before, list) and len(before) == 2 and before[1] == size:
        return File(name, size, str(before[0]))
    return File(name, size, sha256_of(path))


def path_of(state: State, name: str) -> Path:
    """A file of an export by its name in the list; RunError for any other."""
    to = Path(state.job.to)
    if name not in {one.name for one in files_of(state)}:
        raise RunError("the export has no such file.")
    return to if to.is_file() else to / name
