"""Reports of one run or of several side by side, as HTML and JSON, made from stored files only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.errors import RunError, first_line
from rankwise.reporting.document import BEGINS, BEGINS_DATA, Document
from rankwise.runs.directory import REPORTS
from rankwise.runs.records import Callback, WarningMessage
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import told_when_full, write_atomic

LONGEST_NAME = 100
"""Largest length of the name of a comparison report, in bytes."""


@dataclass(frozen=True)
class Reported:
    page: Path
    data: Path
    verdict: str


def report(names: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | Path | None = None) -> Reported:
    """Write the report of one run in any state, or of several runs compared with the first."""
    from rankwise.commands.compare import compare  # late, since a training loads this module
    from rankwise.reporting.comparison import comparison_report
    from rankwise.reporting.training import training_report

    listed = [os.fspath(one) for one in ([names] if isinstance(names, str | os.PathLike) else names)]
    if not listed:
        raise RunError("name at least one run to report on.")
    if len(listed) == 1:
        run = RunSnapshot.read(listed[0])
        return write_document(training_report(run), Path(out) if out is not None else run.folder / REPORTS[0])
    compared = compare(listed)
    document = comparison_report(compared.candidates, compared.comparisons)
    others = "-".join(one.name.replace("/", "-") for one in compared.candidates[1:])
    short = others.encode()[:LONGEST_NAME].decode(errors="ignore")
    usual = compared.candidates[0].folder / f"against-{short}.html"
    return write_document(document, Path(out) if out is not None else usual)


def report_of(run: RunSnapshot) -> Reported:
    """Write the report of a run that this process has just finished."""
    from rankwise.reporting.training import training_report

    return write_document(training_report(replace(run)), run.folder / REPORTS[0])


def write_page(run: RunSnapshot, callback: Callback) -> None:
    """Write or update a run's report; a failure is only a warning, since the work itself is done."""
    try:
        report_of(run)
    except Exception as error:
        callback(
            WarningMessage(f"the report was not written ({first_line(error)}); try rankwise report {run.folder.name}")
        )


def write_document(document: Document, page: Path) -> Reported:
    """Write a page and its data, over an earlier report only."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise RunError(
            f'a report is an HTML file: "{page}" must end in .html (its data are stored beside it in .json).'
        )
    if not page.parent.is_dir():
        raise RunError(f"{page.parent} is not a folder, so no report can be written there.")
    data = page.with_suffix(".json")
    _check_free(page, BEGINS)
    _check_free(data, BEGINS_DATA)
    write_atomic(page, document.as_html())
    write_atomic(data, document.as_json())
    return Reported(page, data, document.verdict)


def _check_free(path: Path, begins: str) -> None:
    """Refuse to overwrite anything but an earlier report."""
    with told_when_full(path):
        if not path.exists():
            return
    ours = path.is_file() and path.open("rb").read(len(begins.encode())) == begins.encode()
    if not ours:
        raise RunError(f"{path} already exists and is not a report. Choose another name with --out.")
