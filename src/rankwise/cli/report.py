"""`rankwise report`: write a report page of a run, or of several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rankwise.cli.display import print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, argument, option


def report(
    runs: Annotated[
        list[str],
        argument("A run (its name or folder), finished or not. Several runs are compared with the first."),
    ],
    out: Annotated[
        Path | None,
        option("Page to write, FILE.html, with FILE.json beside it.  [default: in the run's folder]"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write a report of a run as one HTML file that needs no network, and as JSON."""
    with report_failures(as_json):
        from rankwise.commands.report import report as report_command

        written = report_command(runs, out)
        print_result(as_json, written, f"{written.verdict}\n{written.page}")
