"""`rankwise studio`: the runs of this folder as a page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from rankwise.cli.display import Display, print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, Quiet


def studio(
    host: Annotated[str, typer.Option(help="Address to listen at. Any but this machine's own needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8321,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="RANKWISE_API_KEY",
            show_envvar=True,
            show_default=False,
            help="Key that the browser is asked for. In the variable, other users of the machine cannot see it.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the runs of this folder in the browser: watch, start, compare, ask and export.

    Without a key, only this machine can open it. Trainings are processes of their own, and go on when the studio stops.
    With --json, an object on stdout has the address as soon as the studio is ready.
    """
    with report_failures(as_json):
        from rankwise.serving.address import Address
        from rankwise.studio.server import run_studio

        address = Address(host, port, api_key or None, ())
        with Display(quiet) as display:
            run_studio(address, display, print_json if as_json else None)
