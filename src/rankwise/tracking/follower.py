"""One tracker beside a training, in a thread of its own: it may be slow, fail or hang, and the training goes on.

The training puts lines of its log into a queue. Whatever the tracker raises ends it, and is reported once, by the
training's thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rankwise.errors import first_line
from rankwise.tracking.tracker import Known, Tracker
from rankwise.tracking.values import HISTOGRAM, histogram_of, numbers_of

MOST_WAITING = 100_000
"""Lines that may wait for a slow tracker."""
SECONDS_TO_END = 60.0
"""That a tracker has to take what waits when a run ends."""


@dataclass(frozen=True)
class End:
    """What is known when a run ends."""

    numbers: Mapping[str, float]
    words: Mapping[str, str]
    step: int
    status: str


class Follower:
    """`report` receives one sentence if the tracker ends before the run."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], report: Callable[[str], None]) -> None:
        self.name, self._open, self._report = name, open_tracker, report
        self.problem: str | None = None
        self._reported = False
        self._opened = threading.Event()
        self._waiting: queue.Queue[Mapping[str, Any] | End] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"rankwise-{name}", daemon=True)
        self._thread.start()

    def wait_until_open(self, seconds: float) -> None:
        """Until the tracker is open or has failed, so that its imports take no time from the first steps."""
        self._opened.wait(seconds)
        self._report_once()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take one line of the metrics log, without waiting."""
        if self.problem is None:
            try:
                self._waiting.put_nowait(dict(row))
            except queue.Full:
                self.problem = f"it is slower than the training ({MOST_WAITING:,} records wait)"
        self._report_once()

    def end(self, end: End, seconds: float = SECONDS_TO_END) -> None:
        """Let the tracker take what waits, for so many seconds at most."""
        try:
            if self.problem is None:
                self._waiting.put(end, timeout=seconds)
                self._thread.join(seconds)
                if self._thread.is_alive():
                    self.problem = f"it had not taken all records {seconds:.0f} s after the end"
        except queue.Full:
            self.problem = f"it had not taken all records {seconds:.0f} s after the end"
        except KeyboardInterrupt:
            self.problem = "its end was not waited for"
        self._report_once()

    def _report_once(self) -> None:
        if self.problem is not None and not self._reported:
            self._reported = True
            self._report(
                f"logging to {self.name} ended: {self.problem}. The run and its own log are not affected; "
                f"`rankwise runs log RUN --to {self.name}` logs it again"
            )

    def _work(self) -> None:
        try:
            tracker = self._open()
            known = tracker.known()
            self._opened.set()
            while self.problem is None:
                item = self._waiting.get()
                if isinstance(item, End):
                    _finish(tracker, known, item)
                    return
                _take(tracker, known, item)
        except BaseException as error:  # whatever a library may raise, SystemExit included
            self.problem = f"{type(error).__name__}: {first_line(error)}"
            self._opened.set()


def _take(tracker: Tracker, known: Known, row: Mapping[str, Any]) -> None:
    step = int(row["step"])
    numbers = {name: value for name, value in numbers_of(row).items() if not known.has(name, step)}
    if numbers:
        tracker.log(numbers, step)
    ranks = histogram_of(row)
    if ranks and not known.has(HISTOGRAM, step):
        tracker.log_histogram(HISTOGRAM, ranks, step)


def _finish(tracker: Tracker, known: Known, end: End) -> None:
    new = {name: value for name, value in end.numbers.items() if not known.has_result(name, value, end.step)}
    tracker.log_result(new, end.words, end.step)
    tracker.close(end.status)
