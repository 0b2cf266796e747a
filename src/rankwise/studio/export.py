"""The Export screen: how each engine reads a run's adapter, the exports, and what verified them.

An export loads a model and asks engines, which takes minutes and memory. So it is a process of its own, which outlives
the page and frees everything at its end: `exports/.studio/ID/{job.json, printed.json, log.txt}`. What it prints is what
the page shows, read from these files alone.
"""

from __future__ import annotations

import itertools
import re
import secrets
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rankwise.config.base import Config
from rankwise.config.experiment import RUN_NAME
from rankwise.errors import ConfigError, RankwiseError, RunError
from rankwise.runs.listing import listed_runs
from rankwise.runs.manifest import now
from rankwise.runs.own_files import read_json
from rankwise.runs.queue import last_object
from rankwise.studio.pages import Screen, SentForm, moved, page, read_form
from rankwise.system.contents import hash_of
from rankwise.system.files import json_bytes, make_folders, write_atomic
from rankwise.system.hub import NO_NETWORK
from rankwise.system.processes import began, start_detached

ABOUT = {
    "peft": "The adapter in PEFT's format, with a rank for each layer: the smallest.",
    "portable": "The adapter with one rank and alpha for all layers, for engines that need this.",
    "mlx": "The same in mlx-lm's format.",
    "merged": "The whole model with the adapter in its weights, for engines that read no adapters.",
    "gguf-lora": "The adapter as a GGUF file, for llama.cpp over its base.",
    "gguf": "The merged model as a GGUF file, for llama.cpp and LM Studio.",
    "ollama": "The merged model with a Modelfile.",
}
OF_WHOLE = ("merged", "gguf", "ollama")
LONGEST_BASE = 4096
"""Characters of a folder or a name of the hub."""
VERIFY = {"auto": [], "yes": ["--verify"], "no": ["--no-verify"]}
EXPORTS = Path("exports")
JOBS = EXPORTS / ".studio"
LOG_BYTES = 20_000


class ExportJob(Config):
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
class ExportState:
    """`printed` is the object that `export --json` prints, None as long as the export runs."""

    job: ExportJob
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


def start(run: str, to: Path, format: str, options: Sequence[str]) -> ExportJob:
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
        job = ExportJob(
            id=number, run=run, to=str(to), format=format, words=words, started=now(), process=process.pid,
            began=began(process.pid),
        )  # fmt: skip
        write_atomic(folder / "job.json", json_bytes(job.model_dump(mode="json")))
        return job


def state_of(number: str) -> ExportState:
    """RunError where there is no such export."""
    folder = JOBS / number
    if not re.fullmatch(r"[0-9a-f]{16}", number) or not (folder / "job.json").is_file():
        raise RunError(f"there is no export {number[:40]!r}.")
    job = read_json(folder / "job.json", ExportJob)
    running = job.began is not None and began(job.process) == job.began
    return ExportState(job, running, last_object(folder / "printed.json") if not running else None, _log(folder))


def _log(folder: Path) -> str:
    with suppress(OSError):
        content = (folder / "log.txt").read_bytes()[-LOG_BYTES:].decode("utf-8", "replace")
        return "\n".join(line.rpartition("\r")[2] for line in content.splitlines() if line.strip())
    return ""


def states() -> list[ExportState]:
    """The newest first."""
    found: list[ExportState] = []
    for file in JOBS.glob("*/job.json"):
        with suppress(RunError):
            found.append(state_of(file.parent.name))
    return sorted(found, key=lambda item: (item.job.started, item.job.id), reverse=True)


def files_of(state: ExportState) -> list[File]:
    """What a finished export wrote."""
    to = Path(state.job.to)
    paths = [to] if to.is_file() else sorted(one for one in to.rglob("*") if one.is_file() and not one.is_symlink())
    return [
        File(path.name if path == to else path.relative_to(to).as_posix(), path.stat().st_size, hash_of(path))
        for path in paths if state.done
    ]  # fmt: skip


def path_of(state: ExportState, name: str) -> Path:
    """A file of an export by its name in the list; RunError for any other."""
    to = Path(state.job.to)
    if name not in {one.name for one in files_of(state)}:
        raise RunError(f"the export has no file {name[:100]!r}.")
    return to if to.is_file() else to / name


def shown(request: Request) -> Response:
    """`run` is what is exported."""
    return _page(request, request.query_params.get("run", ""), {})


def _page(request: Request, named: str, fields: dict[str, str], problem: str = "") -> Response:
    finished = [one.name for one in listed_runs() if one.status == "finished"]
    run = named or (finished[0] if finished else "")
    choices: Any = None
    if run:
        try:
            choices = _choices(run)
        except RankwiseError as error:
            problem = problem or str(error)
    defaults: dict[str, str] = {}
    if choices:
        usual = "peft" if choices.formats["peft"] is None else "merged"
        defaults = {"to": _free(run, usual), "format": usual, "strength": "1", "verify": "auto"}
    return page(
        request, "export.html", 422 if problem and fields else 200, title="Export", runs=finished, run=run,
        choices=choices, exports=[one for one in states() if one.job.run == run], fields=defaults | fields,
        problem=problem, about=ABOUT, folder=str(EXPORTS),
    )  # fmt: skip


def _choices(run: str) -> Any:
    from rankwise.commands.export_choices import export_choices

    return export_choices(run)


def _free(run: str, format: str) -> str:
    """A name that no export has."""
    names = itertools.chain([f"{run}-{format}"], (f"{run}-{format}-{number}" for number in itertools.count(2)))
    return next(one for one in names if not (EXPORTS / one).exists())


async def begin(request: Request) -> Response:
    sent = await read_form(request)
    fields = {name: sent.text(name) for name in sent.fields}
    run = sent.text("run")
    try:
        job = await run_in_threadpool(_begun, sent, run)
    except RankwiseError as error:
        return await run_in_threadpool(_page, request, run, fields, str(error))
    return moved(f"/exports/{job.id}")


def _begun(sent: SentForm, run: str) -> ExportJob:
    """ConfigError with all that is wrong, as far as the page can know it; the export itself says the rest."""
    to, format, strength = sent.text("to").strip(), sent.text("format"), sent.text("strength", "1").strip() or "1"
    dtype, wish, problems = sent.text("dtype"), sent.text("verify", "auto"), list[str]()
    base = sent.text("base_model").strip()
    if not re.fullmatch(RUN_NAME, to):
        problems.append(f"The name {to[:60]!r} is not possible. Use up to 64 letters, digits, dots, _ and -.")
    elif (EXPORTS / to).exists():
        problems.append(f"{EXPORTS / to} exists already, and is not overwritten. Choose another name.")
    if format not in ABOUT:
        problems.append("Choose a format.")
    if not re.fullmatch(r"\d+\.?\d*", strength):
        problems.append(f"The strength {strength[:20]!r} is not a number; 1 is the adapter as trained.")
    if wish not in VERIFY:
        problems.append("Choose how to verify.")
    if not re.fullmatch(r"[a-z0-9]{0,20}", dtype):
        problems.append(f"There is no number format {dtype[:20]!r}.")
    if "\0" in base or len(base) > LONGEST_BASE:
        problems.append(f"The base model {base[:60]!r} is not possible.")
    if run not in {one.name for one in listed_runs() if one.status == "finished"}:
        problems.append(f"There is no finished run {run[:80]!r}.")
    if problems:
        raise ConfigError(problems)
    options = [*VERIFY[wish]]
    options += ["--strength", strength] if float(strength) != 1 else []
    options += ["--dtype", dtype] if dtype and format in OF_WHOLE else []
    options += ["--round-rank"] if sent.text("round_rank") and format == "portable" else []
    if base:
        options += [f"--base-model={base}"]
    return start(run, EXPORTS / to, format, options)


def job(request: Request) -> Response:
    state = state_of(request.path_params["id"])
    return page(
        request, "export_job.html", title=f"Export {Path(state.job.to).name}", state=state, files=files_of(state)
    )


def state(request: Request) -> Response:
    """The part of the page that changes."""
    now = state_of(request.path_params["id"])
    return page(request, "export_state.html", state=now, files=files_of(now))


def download(request: Request) -> Response:
    path = path_of(state_of(request.path_params["id"]), request.path_params["name"])
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


SCREEN = Screen(
    [
        Route("/export", shown), Route("/export/begin", begin, methods=["POST"]), Route("/exports/{id}", job),
        Route("/exports/{id}/state", state), Route("/exports/{id}/files/{name:path}", download),
    ],
    label="Export", path="/export",
)  # fmt: skip
