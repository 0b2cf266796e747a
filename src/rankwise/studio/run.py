"""The screen of one run: its progress as it is written, its settings and files, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from rankwise.commands.runs import end_run, rename_run, show
from rankwise.config.yaml import dump_yaml
from rankwise.errors import RankwiseError, RunError
from rankwise.reporting.document import facts
from rankwise.reporting.provenance import data_section
from rankwise.reporting.training import outcome
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import Manifest
from rankwise.runs.queue import Queue
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.upkeep import entry
from rankwise.studio.live import AT_WORK, StateReader, events, known_run
from rankwise.studio.pages import Screen, drawing, moved, page, read_form, segment

LOG_BYTES = 60_000
"""How many bytes of the end of a log are shown."""


@dataclass(frozen=True)
class RunPage:
    """What the page shows beside the course. `snapshot` is None before the first manifest, and for a damaged run."""

    name: str
    state: dict[str, Any]
    snapshot: RunSnapshot | None
    bytes: int
    parts: dict[str, int]
    steps_saved: Sequence[int]

    @property
    def at_work(self) -> bool:
        return self.state["status"] in AT_WORK

    @property
    def manifest(self) -> Manifest | None:
        return None if self.snapshot is None else self.snapshot.manifest

    @property
    def can_end(self) -> bool:
        """Whether the training can be ended with a result."""
        manifest = self.manifest
        return self.state["status"] == "running" and (
            manifest is not None and manifest.machine.get("processes", 1) == 1
        )

    @property
    def can_resume(self) -> bool:
        return not self.at_work and bool(self.steps_saved) and self.state["status"] != "finished"

    @property
    def settings(self) -> str:
        """What was set, as a settings file of `rankwise train`."""
        if self.snapshot is None:
            return ""
        values = self.snapshot.experiment.model_dump(mode="json", exclude_defaults=True)
        values["adapter"] = {"method": self.snapshot.experiment.adapter.method} | values.get("adapter", {})
        return dump_yaml(values)

    @property
    def outcome(self) -> Any:
        """What became of it, as the report says it."""
        return "" if self.snapshot is None else drawing(facts(outcome(self.snapshot, "")))

    @property
    def data(self) -> Any:
        """The data report, as the report page shows it."""
        if self.snapshot is None:
            return None
        try:
            return [drawing(block) for block in data_section(self.snapshot).blocks]
        except RankwiseError:
            return None


def overview(request: Request) -> Response:
    shown = _shown(request.path_params["name"])
    manifest = shown.manifest
    return page(
        request, "run.html", title=shown.name, section="/", run=shown, manifest=manifest,
        results=None if manifest is None else manifest.results,
        forecast=None if manifest is None else manifest.forecast, log=_log(RunDirectory.named(shown.name)),
    )  # fmt: skip


def _shown(name: str) -> RunPage:
    run = known_run(name)
    state, name = StateReader(run).read(), run.folder.name
    if not run.folder.is_dir():
        return RunPage(name, state, None, 0, {}, [])
    shown = show(name)
    return RunPage(name, state, shown.snapshot, shown.run.bytes, shown.parts, run.steps_saved)


def log(request: Request) -> Response:
    """The end of what a training of the queue printed."""
    return PlainTextResponse(_log(known_run(request.path_params["name"])) or "")


def _log(run: RunDirectory) -> str | None:
    """None for a training that was started elsewhere, whose output stands there."""
    queue, name = Queue(), run.folder.name
    file = queue.log(name)
    try:
        if not file.is_file():
            return "" if queue.settings(name).is_file() or queue.entry(name).is_file() else None
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - LOG_BYTES))
            return opened.read().decode(errors="replace")
    except OSError:
        return None


def metrics(request: Request) -> Response:
    """The record of all steps, as the run wrote it."""
    run = entry(request.path_params["name"])
    if not run.metrics.is_file():
        raise RunError(f'run "{run.folder.name}" has no metrics yet.')
    return FileResponse(
        run.metrics, media_type="application/x-ndjson", filename=f"{run.folder.name}-metrics.jsonl",
        headers={"content-security-policy": "default-src 'none'; sandbox"},
    )  # fmt: skip


async def rename(request: Request) -> Response:
    form = await read_form(request)
    renamed = await run_in_threadpool(rename_run, request.path_params["name"], form.text("new").strip())
    return moved(_path(renamed.new), f"Renamed {renamed.old} to {renamed.new}.")


def end(request: Request) -> Response:
    name = request.path_params["name"]
    end_run(name)
    return moved(_path(name), "The training ends after its present step, and saves its result.")


def stop(request: Request) -> Response:
    name = entry(request.path_params["name"]).folder.name
    Queue().stop(name)
    return moved(_path(name), "The training stops after its present step, from which it can be resumed.")


def resume(request: Request) -> Response:
    run = entry(request.path_params["name"])
    Queue().add(run.folder.name, RunSnapshot.of(run).experiment.explicit, resume=True, may_ask_hub=False)
    return moved(_path(run.folder.name), f"{run.folder.name} goes on as soon as no other training of the queue runs.")


def _path(name: str) -> str:
    return f"/runs/{segment(name)}"


SCREEN = Screen([
    Route("/runs/{name}", overview), Route("/runs/{name}/events", events), Route("/runs/{name}/log", log),
    Route("/runs/{name}/metrics.jsonl", metrics), Route("/runs/{name}/rename", rename, methods=["POST"]),
    Route("/runs/{name}/end", end, methods=["POST"]), Route("/runs/{name}/stop", stop, methods=["POST"]),
    Route("/runs/{name}/resume", resume, methods=["POST"]),
])  # fmt: skip
