"""trackio: its database on this machine (TRACKIO_DIR), or the Space or server that its own variables name.

A run that goes on is written anew from its own log, in place of its earlier part.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

from rankwise.tracking.tracker import Known, TrackedRun

STARTED = "rankwise/started"


class TrackioRuns:
    def __init__(self, run: TrackedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._library = trackio
        remote = any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        with redirect_stdout(io.StringIO()), _without_network(not remote):
            if not remote:
                _forget(run)
            self._run = trackio.init(
                run.project, name=run.name, config={STARTED: run.started, **run.settings, **run.facts},
                resume="never", auto_log_gpu=False, auto_log_cpu=False, embed=False,
            )  # fmt: skip

    def known(self) -> Known:
        return Known()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def log_histogram(self, name: str, values: Sequence[int], step: int) -> None:
        self._run.log({name: self._library.Histogram(list(values))}, step=step)

    def log_result(self, numbers: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        self._run.log({**numbers, **words}, step=step)

    def close(self, status: str) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()


def _forget(run: TrackedRun) -> None:
    """What trackio has of this very run."""
    from trackio import Api  # pyright: ignore[reportMissingImports]

    try:
        runs = list(Api().runs(run.project))
    except ValueError:  # the project does not exist yet
        return
    for one in runs:
        if one.name == run.name and (one.config or {}).get(STARTED) == run.started:
            one.delete()


@contextmanager
def _without_network(local: bool) -> Iterator[None]:
    """trackio looks the user's name up on the hub, also where nothing leaves this machine."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or local
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
