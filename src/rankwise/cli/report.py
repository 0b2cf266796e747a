"""`rankwise report`: a run as a page, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.display import print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import Json
from rankwise.cli.visible import visible


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="A run (its name or folder), finished or not; or several, set beside the first.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write: FILE.html, with FILE.json beside it.  [default: in the run's folder]",
                     show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write what a run did and how good it is as one HTML file that needs no network, and as JSON."""
    with failures_told(as_json):
        from rankwise.commands.report import report as report_verb

        made = report_verb(runs, out)
        if as_json:
            print_json(made.summary())
        else:
            typer.echo(f"{visible(made.verdict)}\n{visible(str(made.page))}")
