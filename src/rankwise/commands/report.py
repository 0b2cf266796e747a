"""A run as a page, several as one that sets them side by side: HTML and the same content as JSON, from files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.commands.compare import compare
from rankwise.errors import RunError
from rankwise.reporting.comparison import comparison_report
from rankwise.reporting.document import BEGINS, BEGINS_DATA, Document
from rankwise.reporting.training import training_report
from rankwise.runs.directory import REPORTS, RunDirectory
from rankwise.runs.opened import open_candidates, open_for_reading
from rankwise.system.files import told_when_full, write_atomic

LONGEST_NAME = 100
"""Bytes."""


@dataclass(frozen=True)
class Reported:
    page: Path
    data: Path
    verdict: str

    def summary(self) -> dict[str, Any]:
        """What `rankwise report --json` prints."""
        return {"page": str(self.page), "data": str(self.data), "verdict": self.verdict}


def report(names: str | Sequence[str], out: str | Path | None = None) -> Reported:
    """Of one run, in whatever state, or of several; the first is the one that the others are compared with."""
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise RunError("name at least one run to report on.")
    if len(listed) == 1:
        run = open_for_reading(listed[0])
        document, usual = training_report(run), run.folder / REPORTS[0]
    else:
        candidates = open_candidates(listed)
        document = comparison_report(candidates, compare(listed).comparisons)
        others = "-".join(one.name.replace("/", "-") for one in candidates[1:])
        short = others.encode()[:LONGEST_NAME].decode(errors="ignore")
        usual = candidates[0].folder / f"against-{short}.html"
    return _written(document, Path(out) if out is not None else usual)


def report_of(run: RunDirectory) -> Reported:
    """Of a run that this process has just made."""
    return report(str(run.folder))


def _written(document: Document, page: Path) -> Reported:
    if page.suffix.lower() not in (".html", ".htm"):
        raise RunError(f'a report is a page: "{page}" should end in .html (its data then lie beside it in .json).')
    if not page.parent.is_dir():
        raise RunError(f"{page.parent} is no folder that a report can be written to.")
    data = page.with_suffix(".json")
    _check_free(page, BEGINS)
    _check_free(data, BEGINS_DATA)
    write_atomic(page, document.as_html())
    write_atomic(data, document.as_json())
    return Reported(page, data, document.verdict)


def _check_free(path: Path, begins: str) -> None:
    """An earlier report is written anew; anything else stays as it is."""
    with told_when_full(path):
        if not path.exists():
            return
    ours = path.is_file() and path.open("rb").read(len(begins.encode())) == begins.encode()
    if not ours:
        raise RunError(f"{path} is there already and is no report. Choose another name with --out.")
