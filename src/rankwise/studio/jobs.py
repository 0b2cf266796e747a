"""Jobs: exports, predictions and evaluations, each a command in a process of its own.

A job loads a model, which takes minutes and memory. So it is a process that outlives the page and frees everything at
its end: `exports/.studio/ID/{job.json, printed.json, log.txt}`. What it prints is what its page shows, read from these
files alone.
"""

from __future__ import annotations

import itertools
import re
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rankwise.config.base import Config
from rankwise.errors import RunError
from rankwise.runs.listing import listed_runs
from rankwise.runs.manifest import now
from rankwise.runs.own_files import read_json
from rankwise.runs.queue import last_object
from rankwise.studio.pages import page
from rankwise.studio.settings_form import with_labels
from rankwise.studio.uploads import with_names
from rankwise.system.contents import hash_of
from rankwise.system.files import json_bytes, make_folders, write_atomic
from rankwise.system.hub import NO_NETWORK
from rankwise.system.processes import began, start_detached

EXPORTS = Path("exports")
JOBS = EXPORTS / ".studio"
LOG_BYTES = 20_000
FORM_LABELS = {
    "--data": "Rows on this machine", "--on-bad-row": "A row that cannot be used", "--score": "Scores", "--to": "Name",
    "--format": "Format", "--strength": "Strength", "--dtype": "Number format of a whole model",
    "--base-model": "Name of the base", "--round-rank": "Round the rank for vLLM",
}  # fmt: skip
"""The labels of fields for the flags of jobs."""


class StartedJob(Config):
    """`words` are the command line behind `rankwise`, and `format` is that of an export."""

    id: str
    run: str
    to: str
    format: str = ""
    words: tuple[str, ...]
    started: str
    process: int
    began: float | None

    @property
    def command(self) -> str:
        return self.words[0]


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class JobState:
    """`printed` is the object that the command prints with --json, None as long as it runs."""

    job: StartedJob
    running: bool
    printed: dict[str, Any] | None
    log: str

    @property
    def problem(self) -> str | None:
        if self.printed is not None:
            error = self.printed.get("error")
            return None if error is None else with_labels(with_names(str(error)), FORM_LABELS)
        return None if self.running else "It was stopped before it was finished."

    @property
    def done(self) -> bool:
        return self.printed is not None and self.problem is None

    @property
    def word(self) -> str:
        return "running" if self.running else "done" if self.done else "failed"

    @property
    def share(self) -> float | None:
        """How much of its present activity is done, by the last line of its output."""
        shares = re.findall(r" (\d+)%", self.log.rpartition("\n")[2])
        return int(shares[-1]) / 100 if shares else None


_starting = threading.Lock()


def start(run: str, to: Path, words: Sequence[str], format: str = "") -> StartedJob:
    """RunError while another job runs. Of two that are wanted at once, one begins."""
    with _starting:
        if (other := next((one for one in states() if one.running), None)) is not None:
            raise RunError(
                f"{other.job.to} is being written. Wait for it, since each export, prediction and evaluation needs the "
                "memory of a model."
            )
        number, words = secrets.token_hex(8), (*words, "--json")
        folder = JOBS / number
        make_folders(folder)
        with (folder / "printed.json").open("wb") as printed, (folder / "log.txt").open("wb") as log:
            command = [sys.executable, "-P", "-m", "rankwise", *words]
            process = start_detached(command, out=printed, log=log, environment=NO_NETWORK)
        job = StartedJob(
            id=number, run=run, to=str(to), format=format, words=words, started=now(), process=process.pid,
            began=began(process.pid),
        )  # fmt: skip
        write_atomic(folder / "job.json", json_bytes(job.model_dump(mode="json")))
        return job


def state_of(number: str) -> JobState:
    """RunError where there is no such job."""
    folder = JOBS / number
    if not re.fullmatch(r"[0-9a-f]{16}", number) or not (folder / "job.json").is_file():
        raise RunError(f"there is no job {number[:40]!r}.")
    job = read_json(folder / "job.json", StartedJob)
    running = job.began is not None and began(job.process) == job.began
    return JobState(job, running, last_object(folder / "printed.json") if not running else None, _log(folder))


def _log(folder: Path) -> str:
    with suppress(OSError):
        content = with_names((folder / "log.txt").read_bytes()[-LOG_BYTES:].decode(errors="replace"))
        return "\n".join(line.rstrip().rpartition("\r")[2] for line in content.splitlines() if line.strip())
    return ""


def states(command: str = "", run: str = "") -> list[JobState]:
    """Jobs of one command and of one run, or of all; the newest first."""
    found: list[JobState] = []
    for file in JOBS.glob("*/job.json"):
        with suppress(RunError):
            found.append(state_of(file.parent.name))
    chosen = [one for one in found if command in ("", one.job.command) and run in ("", one.job.run)]
    return sorted(chosen, key=lambda item: (item.job.started, item.job.id), reverse=True)


def finished_runs() -> list[str]:
    return [one.name for one in listed_runs() if one.status == "finished"]


def free_place(name: str, ending: str = "") -> Path:
    """A place that no export has."""
    places = itertools.chain([f"{name}{ending}"], (f"{name}-{number}{ending}" for number in itertools.count(2)))
    return next(EXPORTS / one for one in places if not (EXPORTS / one).exists())


def files_of(state: JobState) -> list[File]:
    """What a finished job wrote."""
    to = Path(state.job.to)
    paths = [to] if to.is_file() else sorted(one for one in to.rglob("*") if one.is_file() and not one.is_symlink())
    return [
        File(path.name if path == to else path.relative_to(to).as_posix(), path.stat().st_size, hash_of(path))
        for path in paths if state.done
    ]  # fmt: skip


def path_of(state: JobState, name: str) -> Path:
    """A file of a job by its name in the list; RunError for any other."""
    to = Path(state.job.to)
    if name not in {one.name for one in files_of(state)}:
        raise RunError(f"it has no file {name[:100]!r}.")
    return to if to.is_file() else to / name


def job_routes(path: str, back: str, result: str, details: Callable[[JobState], dict[str, Any]]) -> list[Route]:
    """The page of a job below `path`, the part of it that changes, and its files. `back` is the screen that begins
    such jobs; `result` is the template of what came of one, with its `details`."""

    def shown(request: Request, template: str) -> Response:
        state = state_of(request.path_params["id"])
        return page(
            request, template, title=Path(state.job.to).name, section=back, state=state, files=files_of(state),
            path=path, back=back, result=result, **(details(state) if state.done else {}),
        )  # fmt: skip

    def download(request: Request) -> Response:
        file = path_of(state_of(request.path_params["id"]), request.path_params["name"])
        return FileResponse(file, media_type="application/octet-stream", filename=file.name)

    return [
        Route(f"{path}/{{id}}", lambda request: shown(request, "job.html")),
        Route(f"{path}/{{id}}/state", lambda request: shown(request, "job_state.html")),
        Route(f"{path}/{{id}}/files/{{name:path}}", download),
    ]  # fmt: skip
