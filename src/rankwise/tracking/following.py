"""All trackers of a run: opened beside its metrics log, brought up to it, and ended as the run ended.

Each tracker has a thread and a queue: it may be slow, fail or hang, and the training goes on. Whatever it raises ends
it, and is reported once, by the training's thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from rankwise.config.tracking import TrackerName
from rankwise.errors import ConfigError, RankwiseError, RunError, first_line
from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.snapshot import RunSnapshot
from rankwise.tracking.trackers import TRACKERS, TrackedRun, Tracker
from rankwise.tracking.values import facts_before, results_of, settings_of, values_of

Row = Mapping[str, Any]
End = tuple[Mapping[str, float | str], int, str]
"""Results, the last step and how the run ended."""
MOST_WAITING = 100_000
"""Lines that may wait for a slow tracker."""
SECONDS_TO_OPEN, SECONDS_TO_END = 20.0, 60.0
"""That training waits for each tracker before its first step, and after its last one."""


def check_installed(names: Sequence[TrackerName]) -> None:
    """ConfigError with the line that installs what is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError([
            f"logging to {name} needs {name}, which is not installed: pip install 'rankwise[{name}]'."
            for name in missing
        ])  # fmt: skip


class Follower:
    """One tracker. `report` receives one sentence if it ends before the run."""

    def __init__(self, name: TrackerName, run: TrackedRun, report: Callable[[str], None]) -> None:
        self._name: TrackerName = name
        self._run, self._report = run, report
        self._problem: str | None = None
        self._reported, self._opened = False, threading.Event()
        self._waiting: queue.Queue[Row | End] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"rankwise-{name}", daemon=True)
        self._thread.start()

    def wait_until_open(self, seconds: float) -> None:
        """Until the tracker is open or has failed, so that its imports take no time from the first steps."""
        self._opened.wait(seconds)
        self._report_once()

    def __call__(self, item: Row | End) -> None:
        """Take one line of the metrics log, without waiting."""
        if self._problem is None:
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                self._problem = f"it is slower than the training ({MOST_WAITING:,} records wait)"
        self._report_once()

    def end(self, end: End, seconds: float) -> None:
        """Let the tracker take what waits, for so many seconds at most."""
        self(end)
        try:
            self._thread.join(0 if self._problem else seconds)
            if self._problem is None and self._thread.is_alive():
                self._problem = f"it had not taken all records {seconds:.0f} s after the end"
        except KeyboardInterrupt:
            self._problem = "its end was not waited for"
        self._report_once()

    def _report_once(self) -> None:
        if self._problem is not None and not self._reported:
            self._reported = True
            self._report(
                f"logging to {self._name} ended: {self._problem}. The run and its own log are not affected; "
                f"`rankwise runs log RUN --to {self._name}` logs it again"
            )

    def _work(self) -> None:
        try:
            tracker = opened(self._name, self._run)
            self._opened.set()
            while self._problem is None:
                item = self._waiting.get()
                if isinstance(item, tuple):
                    return tracker.end(*item)
                if values := values_of(item):
                    tracker.log(values, int(item["step"]))
        except BaseException as error:  # whatever a library may raise, SystemExit included
            self._problem = f"{type(error).__name__}: {first_line(error)}"
            self._opened.set()


def opened(name: TrackerName, run: TrackedRun) -> Tracker:
    return TRACKERS[name](run)


class Following:
    """Callable with each line of the metrics log as it is written."""

    def __init__(
        self, directory: RunDirectory, names: Sequence[TrackerName], project: str, report: Callable[[str], None],
        went_back: bool = False,
    ) -> None:  # fmt: skip
        self._directory, self._step = directory, 0
        self.followers: list[Follower] = []
        if not names:
            return
        run = RunSnapshot.of(directory)
        rows = read_metrics_log(directory.metrics) if directory.metrics.exists() else []
        self._step = _last_step(rows)
        tracked = TrackedRun(
            run.name, run.folder, project, run.manifest.started, settings_of(run.experiment),
            facts_before(run.manifest, run.data_report), self._step, went_back,
        )  # fmt: skip
        self.followers = [Follower(name, tracked, report) for name in names]
        for row in rows:
            self(row)
        for follower in self.followers:
            follower.wait_until_open(SECONDS_TO_OPEN)

    def __call__(self, row: Row) -> None:
        self._step = max(self._step, int(row["step"]))
        for follower in self.followers:
            follower(dict(row))

    def end(self, seconds: float = SECONDS_TO_END) -> None:
        """As the run's manifest says that it ended."""
        if not self.followers:
            return
        try:
            run = RunSnapshot.of(self._directory)
            results, status = results_of(run.manifest, run.evaluations), run.manifest.status
        except (RankwiseError, OSError):  # a full disk may have kept the manifest from being written
            results, status = {}, "failed"
        for follower in self.followers:
            follower.end((results, self._step, status), seconds)


def _last_step(rows: Sequence[Row]) -> int:
    try:
        return max((int(row["step"]) for row in rows), default=0)
    except (KeyError, TypeError, ValueError):
        raise RunError("the metrics log is damaged: a line has no step.") from None
