"""`rankwise doctor`: check everything that rankwise needs, with one line and one verdict each."""

from __future__ import annotations

import typer

from rankwise.cli.display import print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json

MARKS = {"good": "ok", "note": "note", "problem": "problem"}


def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, processor, memory, disk, cached models, network."""
    with report_failures(as_json):
        from rankwise.commands.doctor import doctor as doctor_command

        diagnosis = doctor_command()
        lines = [f"{MARKS[one.verdict]:<8}{one.name:<14}{one.value}{f'  ({one.remark})' * bool(one.remark)}"
                 for one in diagnosis.checks]  # fmt: skip
        print_result(as_json, diagnosis.summary(), *lines)
        if not diagnosis.able:
            raise typer.Exit(1)
