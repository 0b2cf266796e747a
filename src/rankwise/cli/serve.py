"""What answers until it is stopped: `rankwise serve` answers requests in the form of OpenAI's API with runs, and
`rankwise studio` shows the runs of this folder as a page in the browser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

Runs = Annotated[
    list[str] | None,
    argument(
        "Finished runs, or adapters by folder or file: all over one base model, or all of them classifiers.",
        autocompletion=run_names,
    ),
]
Base = Annotated[
    str | None,
    option("Serve this base model alone, without runs or adapters.", "--model", autocompletion=starters),
]
Origins = Annotated[
    list[str] | None,
    option("A page that may ask from a browser, such as https://app.example."),
]
BatchSize = Annotated[
    int,
    typer.Option("--together", min=1, max=256, help="Answers that are written, or rows that are classified, at once."),
]
Waiting = Annotated[int, typer.Option(min=0, max=100_000, help="Requests that may wait; others get 429.")]
PrefixMemory = Annotated[
    str,
    typer.Option(
        help="Memory for keys and values of earlier prompts and answers: what a prompt shares with one of them is not "
        "read again. 0 for none."
    ),
]
Most = Annotated[int, typer.Option(min=1, help="Largest number of tokens in an answer whose request names none.")]
Format = Annotated[
    str,
    typer.Option(
        help="Number format: float32, bfloat16, or auto, which is that of training. In float32 an answer does not "
        "depend on the others in its batch."
    ),
]
LoadFrom = Annotated[
    Path | None,
    option("Folder whose runs and adapters requests may load and remove, such as runs.", "--load-from"),
]
Aliases = Annotated[
    list[str] | None,
    option("Another name of the base, such as one that a script asks for.", "--alias"),
]
FineTuning = Annotated[
    bool,
    option("Let requests upload files and train on them, as OpenAI's fine-tuning does.", "--fine-tuning"),
]


def serve(
    runs: Runs = None,
    model: Base = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    allow_origin: Origins = None,
    batch_size: BatchSize = 16,
    waiting: Waiting = 64,
    prefix_memory: PrefixMemory = "512MB",
    max_new_tokens: Most = 1024,
    dtype: Format = "auto",
    load_from: LoadFrom = None,
    fine_tuning: FineTuning = False,
    alias: Aliases = None,
    unconstrained: Unconstrained = False,
    force_base: ForceBase = False,
    trust_code: TrustCode = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer requests in the form of OpenAI's API, with each run, and with its base, by name; or classify.

    All runs answer together in one batch, each with its own adapter. Classifiers of texts and images, and taggers of
    words, are asked at POST /v1/classify. With --json the object on stdout has the address
    and the models, as soon as requests are answered.
    """
    with report_failures(as_json):
        from rankwise.commands.serve import Address, Offer
        from rankwise.commands.serve import serve as serve_command

        address = Address(host, port, api_key or None, tuple(allow_origin or ()))
        offer = Offer(
            runs or (),
            model,
            max_new_tokens,
            dtype,
            force_base,
            trust_code,
            load_from,
            fine_tuning,
            alias or (),
            prefix_memory,
            unconstrained,
        )
        ready = print_json if as_json else None
        with Display(quiet) as display:
            serve_command(offer, address, display, batch_size=batch_size, waiting=waiting, ready=ready)


DRAIN = 1
"""Seconds that open answers get once the studio is stopped; a page that follows a run connects again."""


def studio(
    host: Host = "127.0.0.1", port: Port = 8321, api_key: ApiKey = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Show the runs of this folder in the browser: watch, start, compare, ask and export.

    Without a key, only this machine can open it. Trainings are processes of their own, and go on when the studio stops.
    With --json, an object on stdout has the address as soon as the studio is ready.
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
