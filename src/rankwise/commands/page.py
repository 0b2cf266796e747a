"""A run's page is kept up with what is known of it, and never stands in the way of that."""

from __future__ import annotations

from rankwise.errors import first_line
from rankwise.runs.directory import RunDirectory
from rankwise.runs.records import Callback, WarningMessage


def write_page(run: RunDirectory, callback: Callback) -> None:
    """What was done is done whether or not it can be written."""
    try:
        from rankwise.commands.report import report_of  # late: nobody else need wait for matplotlib

        report_of(run)
    except Exception as error:
        callback(
            WarningMessage(f"the report was not written ({first_line(error)}); try rankwise report {run.folder.name}")
        )
