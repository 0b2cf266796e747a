"""A run's folder as those processes have it that train with the one that writes it: read, and never written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rankwise.config.experiment import Experiment
from rankwise.runs.directory import RunDirectory


class FollowedRun(RunDirectory):
    """Whatever would change the folder does nothing; the first process does it."""

    @contextmanager
    def claimed(self, *, restart: bool, resume: bool = False) -> Iterator[RunDirectory]:
        yield self

    def check_lock(self) -> None: ...

    def begin(self, experiment: Experiment) -> None: ...

    def go_on(self, step: int, files: Mapping[str, bytes]) -> list[str]:
        return []

    def forget_results(self) -> None: ...

    def forget_steps(self) -> None: ...

    def _write(self, name: str, value: Any) -> None: ...
