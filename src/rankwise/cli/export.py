"""`rankwise export`: a run's adapter as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.display import print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import Json, RunName


def export(
    run: RunName,
    to: Annotated[Path, typer.Option("--to", help="Folder to make; it must not be there yet.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            help="peft: each layer its own rank. portable: one rank and alpha, for engines that read no more."
        ),
    ] = "peft",
    as_json: Json = False,
) -> None:
    """Write a run's adapter as a folder that other programs read."""
    with failures_told(as_json):
        from rankwise.verbs.export import export as export_verb

        exported = export_verb(run, to, format)
        if as_json:
            print_json(exported.summary())
        else:
            typer.echo(
                f"{exported.to}: {exported.format}, rank {exported.rank}, {exported.bytes / 1e6:.1f} MB; "
                "read back, and the same adapter"
            )
