"""A request that a training ends with the step that it is at, and that its result is saved as it then is.

It is a file in the run's folder, which the training looks for after each step, whoever started it. A training that
begins or goes on removes what is left of an earlier request. Ctrl-C is something else: it leaves no result.
"""

from __future__ import annotations

from rankwise.errors import RunError
from rankwise.runs.directory import END_REQUEST, RunDirectory
from rankwise.runs.listing import writer_of
from rankwise.system.files import write_atomic

BY_REQUEST = "by request"
"""Why the training ended, in the run's results."""


def ask_to_end(run: RunDirectory) -> None:
    """RunError where nobody trains, or where several processes do, which cannot see the request at the same step."""
    name = run.folder.name
    if writer_of(run) is None:
        raise RunError(f'run "{name}" is not being trained, so it cannot be ended.')
    manifest = run.manifest()
    if manifest.status != "running":
        raise RunError(f'run "{name}" has already ended its steps ({manifest.status}).')
    if manifest.machine.get("processes", 1) > 1:
        raise RunError(f'run "{name}" is trained by several processes, which cannot be ended early with a result.')
    write_atomic(run.folder / END_REQUEST, b"")


def is_asked_to_end(run: RunDirectory) -> bool:
    return (run.folder / END_REQUEST).exists()


def forget_end_request(run: RunDirectory) -> None:
    (run.folder / END_REQUEST).unlink(missing_ok=True)
