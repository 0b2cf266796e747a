"""An export is called done once no engine at hand objects: until then it lies under a name that nothing would load.

The written folder is renamed to a hidden name beside it, verified there, and renamed back. If an engine says something
else than the trained model, or the process ends, nothing lies under the name that was asked for. The figures go into
the model card.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rankwise.errors import ConfigError, ExportError, RunError
from rankwise.exporting.verification import Export, Verification, Verifying, require, verify
from rankwise.methods.artifact import Artifact
from rankwise.runs.directory import CARD
from rankwise.runs.records import Callback
from rankwise.system.files import write_atomic

HEADING = "## Verified in"


def refuse_unverifiable(how: Verifying, folder: Path) -> None:
    """All that is wrong with the wishes, before anything is written."""
    problems = []
    if how.rows is not None and not os.path.exists(how.rows):  # noqa: PTH110  it may be no path
        problems.append(f"--verify-data {how.rows}: there is no such file.")
    if how.wish == "no" and (how.pythons or how.rows or how.url):
        problems.append("--no-verify runs no engine, so --engine-python, --verify-data and an address are of no use.")
    if how.url is not None and not how.url.startswith(("http://", "https://")):
        problems.append(f"--verify {how.url}: is no address. Give one such as http://localhost:8000, or leave it out.")
    if how.server_model is not None and how.url is None:
        problems.append("--server-model is the name by which a server knows the model; give its address with --verify.")
    if problems:
        raise ConfigError(problems)
    if how.url is not None and not os.path.lexists(folder):
        raise RunError(
            f"{folder} does not exist. Export it first, start the server with it, and then compare the server: "
            f"--verify {how.url}."
        )


def arrived(artifact: Artifact, export: Export, how: Verifying, callback: Callback) -> Verification:
    """Verify what was just written. ExportError, and nothing left, where it is not what was trained."""
    folder = Path(export.path)
    with _hidden(folder) as hidden:
        verification = verify(artifact, replace(export, path=str(hidden.absolute())), how, callback)
        require(verification, str(folder))
        _add_to_card(hidden / CARD, verification)
    return verification


def served(artifact: Artifact, export: Export, how: Verifying, callback: Callback) -> Verification:
    """Compare what a server answers. ExportError where it is not what was trained; the folder stays as it is."""
    verification = verify(artifact, export, replace(how, wish="yes"), callback)
    if verification.wrong:
        raise ExportError(f"{how.url} does not answer as {artifact.described} does: {verification.wrong[0].why}.")
    unasked = next((one for one in verification.verdicts if one.status == "not run"), None)
    if unasked is not None:
        raise ExportError(f"{how.url} could not be compared with {artifact.described}: {unasked.why}.")
    return verification


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """Another name for as long as the block runs, and none at all if it fails. A file lies in a hidden folder, so that
    it keeps its ending and is cleared away as other temporary folders are (system/files.py)."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    hidden = temporary / folder.name if folder.is_file() else temporary
    if hidden != temporary:
        temporary.mkdir()
    folder.rename(hidden)
    try:
        yield hidden
        hidden.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _add_to_card(card: Path, verification: Verification) -> None:
    """What the engines said, for whoever reads the folder later."""
    ran = [one for one in verification.verdicts if one.by == "run"]
    if not ran or not card.is_file():
        return
    text = card.read_text(encoding="utf-8", errors="replace").partition(f"\n{HEADING}")[0].rstrip("\n")
    rows = "\n".join(f"- {one.line()}" for one in ran)
    asked = f"Asked: {verification.about}; compared with the trained model in float32."
    write_atomic(card, f"{text}\n\n{HEADING} other software\n\n{asked}\n\n{rows}\n".encode())
