"""The trainings that wait in this folder, the one that runs, and how the last ones ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankwise.runs.queue import Ended, Queue, Waiting, Working


@dataclass(frozen=True)
class QueueState:
    working: Working | None
    waiting: list[Waiting]
    ended: list[Ended]
    """Those that the queue trained and that did not finish."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise queue --json` prints."""
        return {
            "working": self.working,
            "waiting": [one.model_dump(mode="json", include={"run", "added", "resume"}) for one in self.waiting],
            "failed": self.ended,
        }

    def lines(self) -> list[str]:
        lines = [] if self.working is None else [f"{self.working.run}  running since {self.working.started}"]
        lines += [f"{one.run}  waiting since {one.added}" for one in self.waiting]
        lines += [f"{one.run}  ended: {one.problem}" for one in self.ended]
        return lines or ["No training waits."]


def listed() -> QueueState:
    queue = Queue()
    queue.start_worker()
    names = sorted(file.stem for file in (queue.folder / "logs").glob("*.log"))
    ended = [one for one in map(queue.ended, names) if one is not None and one.problem is not None]
    return QueueState(queue.working(), queue.waiting(), ended)
