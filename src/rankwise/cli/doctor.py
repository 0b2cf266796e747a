"""`rankwise doctor`: check everything that rankwise needs, with one line and one verdict each."""

from __future__ import annotations

import typer

from rankwise.cli.display import print_json
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json

MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "problem": ("problem", "red")}


def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, processor, memory, disk, cached models, network."""
    with report_failures(as_json):
        from rankwise.commands.doctor import doctor as doctor_command

        diagnosis = doctor_command()
        if as_json:
            print_json(diagnosis.summary())
        else:
            from rich.console import Console
            from rich.text import Text

            console = Console(highlight=False)
            for check in diagnosis.checks:
                mark, colour = MARKS[check.verdict]
                remark = f"  ({check.remark})" if check.remark else ""
                console.print(
                    Text(f"{mark:<8}", style=colour) + Text(f"{check.name:<14}{check.value}{remark}"), soft_wrap=True
                )
        if not diagnosis.able:
            raise typer.Exit(1)
