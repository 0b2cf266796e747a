"""All trackers of a run: opened beside its metrics log, brought up to it, and ended as the run ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rankwise.config.tracking import TrackerName
from rankwise.errors import ConfigError, RankwiseError, RunError
from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.snapshot import RunSnapshot
from rankwise.tracking.follower import SECONDS_TO_END, End, Follower
from rankwise.tracking.tracker import TrackedRun, Tracker
from rankwise.tracking.values import facts_before, results_of, settings_of

SECONDS_TO_OPEN = 20.0
"""That training waits for each tracker before its first step."""
HOMES: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboard_files", "TensorBoardFiles"),
    "wandb": ("wandb_runs", "WandbRuns"),
    "mlflow": ("mlflow_runs", "MlflowRuns"),
    "trackio": ("trackio_runs", "TrackioRuns"),
}
"""The module of this folder and its class; the library has the tracker's own name."""


def check_installed(names: Sequence[TrackerName]) -> None:
    """ConfigError with the line that installs what is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError([
            f"logging to {name} needs {name}, which is not installed: pip install 'rankwise[{name}]'."
            for name in missing
        ])  # fmt: skip


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
        self.followers = [Follower(name, lambda name=name: opened(name, tracked), report) for name in names]
        for row in rows:
            self(row)
        for follower in self.followers:
            follower.wait_until_open(SECONDS_TO_OPEN)

    def __call__(self, row: Mapping[str, Any]) -> None:
        self._step = max(self._step, int(row["step"]))
        for follower in self.followers:
            follower(row)

    def end(self, seconds: float = SECONDS_TO_END) -> None:
        """As the run's manifest says that it ended."""
        if not self.followers:
            return
        numbers, words, status = _known_at_the_end(self._directory)
        for follower in self.followers:
            follower.end(End(numbers, words, self._step, status), seconds)


def opened(name: TrackerName, run: TrackedRun) -> Tracker:
    module, kind = HOMES[name]
    return getattr(import_module(f"rankwise.tracking.{module}"), kind)(run)


def _known_at_the_end(directory: RunDirectory) -> tuple[dict[str, float], dict[str, str], str]:
    try:
        run = RunSnapshot.of(directory)
        return *results_of(run.manifest, run.evaluations), run.manifest.status
    except (RankwiseError, OSError):  # a full disk may have kept the manifest from being written
        return {}, {}, "failed"


def _last_step(rows: Sequence[Mapping[str, Any]]) -> int:
    try:
        return max((int(row["step"]) for row in rows), default=0)
    except (KeyError, TypeError, ValueError):
        raise RunError("the metrics log is damaged: a line has no step.") from None
