"""What a tracker is: numbers by name and step, histograms, and what is known when a run ends.

    known = tracker.known()          what it has already, of a run that goes on
    tracker.log({"train/loss": 1.2}, step=3)
    tracker.log_result({...}, {...}, step=100)
    tracker.close("finished")

A tracker receives no rows and no texts. Its library is imported when it is opened, and whatever it raises ends the
tracker alone (follower.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rankwise.runs.directory import TRACKING


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it. `started` tells apart two runs that had one name after the other."""

    name: str
    folder: Path
    project: str
    started: str
    settings: Mapping[str, Any]
    """The experiment by dotted names, without texts."""
    facts: Mapping[str, Any]
    """What is known before the first step: the data report in numbers, the base, the forecast."""
    last_step: int
    """The last step of the metrics log as the tracker is opened; 0 for a new run."""
    went_back: bool = False
    """Training went back to `last_step` after it had diverged, and takes other values from there on."""

    @property
    def tracking(self) -> Path:
        return self.folder / TRACKING


@dataclass(frozen=True)
class Known:
    """What a tracker has of a run: the newest step and value of each number, and whole steps up to `floor`."""

    newest: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    floor: int = -1

    def has(self, name: str, step: int) -> bool:
        return step <= self.floor or (name in self.newest and step <= self.newest[name][0])

    def has_result(self, name: str, value: float, step: int) -> bool:
        return self.newest.get(name) == (step, value)


class Tracker(Protocol):
    def known(self) -> Known:
        """What it has already, so that it is not sent again."""
        ...

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def log_histogram(self, name: str, values: Sequence[int], step: int) -> None:
        """Nothing, in a tracker without histograms."""
        ...

    def log_result(self, numbers: Mapping[str, float], words: Mapping[str, str], step: int) -> None: ...

    def close(self, status: str) -> None:
        """`status` is the manifest's."""
        ...
