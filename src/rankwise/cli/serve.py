"""What answers until it is stopped: `rankwise serve` answers requests in the form of OpenAI's API with runs, and
`rankwise studio` shows the runs of this folder as a page in the browser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import (
    ApiKey,
    ForceBase,
    Host,
    Json,
    Port,
    Quiet,
    TrustCode,
    Unconstrained,
    argument,
    option,
    starters,
)
from rankwise.errors import ConfigError
from rankwise.runs.listing import run_names
from rankwise.runs.records import StatusMessage
from rankwise.system.extras import need_extra


def serve(
    runs: Annotated[list[str] | None, argument(
        "Finished runs or adapters (folder or file): all with the same base model, or all classifiers.",
        autocompletion=run_names)] = None,
    model: Annotated[str | None, option(
        "Serve this base model only, without runs or adapters.", "--model", autocompletion=starters)] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    allow_origin: Annotated[list[str] | None, option(
        "Origin of a web page that may send requests (CORS), such as https://app.example. Can be repeated.")] = None,
    max_batch: Annotated[int, option(
        "Maximum number of answers to generate, or rows to classify, at once.", min=1, max=256)] = 16,
    max_queue: Annotated[int, option(
        "Maximum number of waiting requests. Further requests get status 429.", min=0, max=100_000)] = 64,
    prefix_cache: Annotated[str, option(
        "Memory for the prefix cache (keys and values of earlier prompts), such as 2GB. 0 turns it off.")] = "512MB",
    max_new_tokens: Annotated[int, option(
        "Maximum number of tokens in an answer if the request doesn't set one.", min=1)] = 1024,
    dtype: Annotated[str, option(
        "Dtype: float32, bfloat16 or auto (as in training). With float32, answers don't depend on what else is in "
        "the batch.")] = "auto",
    load_from: Annotated[Path | None, option(
        "Folder, such as runs, from which requests may load and unload runs and adapters.", "--load-from")] = None,
    fine_tuning: Annotated[bool, option(
        "Enable OpenAI-compatible fine-tuning: requests may upload files and train on them.", "--fine-tuning")] = False,
    alias: Annotated[list[str] | None, option(
        "Another name for the base model, such as one your script already uses. Can be repeated.", "--alias")] = None,
    unconstrained: Unconstrained = False,
    force_base: ForceBase = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Serve runs over an OpenAI-compatible API, or classifiers over HTTP.

    Requests name a run or the base model, and all runs share one batch, each with its own adapter. Text, image and
    token classifiers answer at POST /v1/classify. With --json, stdout gets one object with the address and the models
    when the server is ready.
    """
    with report_failures(as_json):
        from rankwise.commands.serve import Address, Offer
        from rankwise.commands.serve import serve as serve_command

        address = Address(host, port, api_key or None, tuple(allow_origin or ()))
        offer = Offer(
            names=runs or (), base=model, most=max_new_tokens, dtype=dtype, force_base=force_base,
            trust_code=trust_code, load_from=load_from, fine_tuning=fine_tuning, aliases=alias or (),
            prefix_cache=prefix_cache, unconstrained=unconstrained,
        )  # fmt: skip
        ready = print_json if as_json else None
        with Display(quiet) as display:
            serve_command(offer, address, display, batch_size=max_batch, waiting=max_queue, ready=ready)


DRAIN = 1
"""Seconds that open answers get once the studio is stopped; a page that follows a run connects again."""


def studio(
    host: Host = "127.0.0.1", port: Port = 8321, api_key: ApiKey = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Open the studio, a web page for your runs: start, watch, compare, chat, evaluate and export.

    Without a key, only this machine can open it. Runs train in separate processes and continue when the studio stops.
    With --json, stdout gets one object with the address when the studio is ready.
    """
    with report_failures(as_json):
        from rankwise.commands.serve import answer, bound
        from rankwise.serving.address import Address

        for module in ("uvicorn", "starlette", "jinja2"):
            need_extra(module, "rankwise studio", "studio", ConfigError)
        address = Address(host, port, api_key or None, ())
        address.check()
        with Display(quiet) as display, bound(address) as listening:
            from rankwise.studio.app import studio_app
            from rankwise.studio.security import Key

            if as_json:
                print_json({"url": address.url})
            display(StatusMessage(f"the studio is at {address.url} (Ctrl-C stops it; trainings go on)"))
            key = None if address.key is None else Key(address.key, address.port)
            answer(studio_app(key=key, host=address.host), listening, drain=DRAIN, connections=200)
            display(StatusMessage("stopped."))
