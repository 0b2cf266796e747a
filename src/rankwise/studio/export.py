"""The Export screen: how each engine reads a run's adapter, the exports, and what verified them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rankwise.config.experiment import RUN_NAME
from rankwise.errors import ConfigError, RankwiseError
from rankwise.runs.listing import listed_runs
from rankwise.studio import export_jobs
from rankwise.studio.export_jobs import EXPORTS
from rankwise.studio.pages import Form, Screen, moved, page, read_form

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


async def shown(request: Request) -> Response:
    """`run` is what is exported."""
    return await _page(request, request.query_params.get("run", ""), {})


async def _page(request: Request, named: str, fields: dict[str, str], problem: str = "") -> Response:
    finished = [one.name for one in await run_in_threadpool(listed_runs) if one.status == "finished"]
    run = named or (finished[0] if finished else "")
    choices: Any = None
    if run:
        try:
            choices = await run_in_threadpool(_choices, run)
        except RankwiseError as error:
            problem = problem or str(error)
    exports = [one for one in await run_in_threadpool(export_jobs.states) if one.job.run == run]
    defaults: dict[str, str] = {}
    if choices:
        usual = "peft" if choices.formats["peft"] is None else "merged"
        defaults = {"to": _free(run, usual), "format": usual, "strength": "1", "verify": "auto"}
    return page(
        request, "export.html", 422 if problem and fields else 200, title="Export", runs=finished, run=run,
        choices=choices, exports=exports, fields=defaults | fields, problem=problem, about=ABOUT,
        folder=str(EXPORTS),
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
        return await _page(request, run, fields, str(error))
    return moved(f"/exports/{job.id}")


def _begun(sent: Form, run: str) -> export_jobs.Job:
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
    return export_jobs.start(run, EXPORTS / to, format, options)


async def job(request: Request) -> Response:
    state = await run_in_threadpool(export_jobs.state_of, request.path_params["id"])
    files = await run_in_threadpool(export_jobs.files_of, state) if state.done else []
    return page(request, "export_job.html", title=f"Export {Path(state.job.to).name}", state=state, files=files)


async def state(request: Request) -> Response:
    """The part of the page that changes."""
    now = await run_in_threadpool(export_jobs.state_of, request.path_params["id"])
    files = await run_in_threadpool(export_jobs.files_of, now) if now.done else []
    return page(request, "export_state.html", state=now, files=files)


async def download(request: Request) -> Response:
    now = await run_in_threadpool(export_jobs.state_of, request.path_params["id"])
    path = await run_in_threadpool(export_jobs.path_of, now, request.path_params["name"])
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


SCREEN = Screen(
    [
        Route("/export", shown), Route("/export/begin", begin, methods=["POST"]), Route("/exports/{id}", job),
        Route("/exports/{id}/state", state), Route("/exports/{id}/files/{name:path}", download),
    ],
    label="Export", path="/export",
)  # fmt: skip
