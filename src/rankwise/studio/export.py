"""The Export screen: how each engine reads a run's adapter, the exports, and what verified them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.config.base import OF_NAMES
from rankwise.config.experiment import RUN_NAME
from rankwise.errors import ConfigError, RankwiseError
from rankwise.studio.jobs import (
    EXPORTS,
    FORM_LABELS,
    JobState,
    StartedJob,
    finished_runs,
    free_place,
    job_routes,
    start,
    states,
)
from rankwise.studio.pages import Screen, SentForm, moved, page, read_form
from rankwise.studio.settings_form import with_labels

ABOUT = {
    "peft": "The adapter in PEFT's format, with a rank for each layer: the smallest.",
    "portable": "The adapter with one rank and alpha for all layers, for engines that need this.",
    "mlx": "The same in mlx-lm's format.",
    "merged": "The whole model with the adapter in its weights, for engines that read no adapters.",
    "gguf-lora": "The adapter as a GGUF file, for llama.cpp over its base.",
    "gguf": "The merged model as a GGUF file, for llama.cpp and LM Studio.",
    "ollama": "The merged model with a Modelfile.",
    "onnx": "A classifier as a graph, for onnxruntime and browsers.",
}
OF_WHOLE = ("merged", "gguf", "ollama")
LONGEST_BASE = 4096
"""Characters of a folder or a name of the hub."""
VERIFY = {"auto": [], "yes": ["--verify"], "no": ["--no-verify"]}


def shown(request: Request) -> Response:
    """`run` is what is exported."""
    return _page(request, request.query_params.get("run", ""), {})


def _page(request: Request, named: str, fields: dict[str, str], problem: str = "") -> Response:
    finished = finished_runs()
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
        defaults = {"to": free_place(f"{run}-{usual}").name, "format": usual, "strength": "1", "verify": "auto"}
    return page(
        request, "export.html", 422 if problem and fields else 200, title="Export", runs=finished, run=run,
        choices=choices, exports=states("export", run), fields=defaults | fields,
        problem=problem, about=ABOUT, folder=str(EXPORTS),
    )  # fmt: skip


def _choices(run: str) -> Any:
    from rankwise.studio.export_choices import export_choices

    choices = export_choices(run)
    reasons = {format: why and with_labels(why, FORM_LABELS) for format, why in choices.formats.items()}
    return replace(choices, formats=reasons)


async def begin(request: Request) -> Response:
    sent = await read_form(request)
    fields = {name: sent.text(name) for name in sent.fields}
    run = sent.text("run")
    try:
        job = await run_in_threadpool(_begun, sent, run)
    except RankwiseError as error:
        return await run_in_threadpool(_page, request, run, fields, str(error))
    return moved(f"/exports/{job.id}")


def _begun(sent: SentForm, run: str) -> StartedJob:
    """ConfigError with all that is wrong, as far as the page can know it; the export itself says the rest."""
    to, format, strength = sent.text("to").strip(), sent.text("format"), sent.text("strength", "1").strip() or "1"
    dtype, wish, problems = sent.text("dtype"), sent.text("verify", "auto"), list[str]()
    base = sent.text("base_model").strip()
    if not re.fullmatch(RUN_NAME, to):
        problems.append(f"The name {to[:60]!r} is not possible. A name has {OF_NAMES}.")
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
    if run not in finished_runs():
        problems.append(f"There is no finished run {run[:80]!r}.")
    if problems:
        raise ConfigError(problems)
    options = [*VERIFY[wish]]
    options += ["--strength", strength] if float(strength) != 1 else []
    options += ["--dtype", dtype] if dtype and format in OF_WHOLE else []
    options += ["--round-rank"] if sent.text("round_rank") and format == "portable" else []
    if base:
        options += [f"--base-model={base}"]
    place = EXPORTS / to
    return start(run, place, ("export", run, "--to", str(place), "--format", format, *options), format)


def details(state: JobState) -> dict[str, Any]:
    """What engines said that ran, apart from what follows from the rules of others."""
    answers = (state.printed or {}).get("engines")
    rows = sorted(answers.items()) if isinstance(answers, dict) else []
    return {"engines": {by: [row for row in rows if row[1].get("by") == by] for by in ("run", "rule")}}


SCREEN = Screen(
    [
        Route("/export", shown), Route("/export/begin", begin, methods=["POST"]),
        *job_routes("/exports", "/export", "export_result.html", details),
    ],
    label="Export", path="/export",
)  # fmt: skip
