"""Send a run's records to trackers afterwards: `rankwise runs log RUN --to mlflow`.

The records are those of its metrics log, so a tracker gets the same as it would have while the run trained, and the
evaluations that were made since. What the tracker already has is not sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankwise.config.tracking import TrackingConfig
from rankwise.errors import ConfigError, TrackingError
from rankwise.runs.directory import RunDirectory, open_any_run
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.tracking.following import Following, check_installed

SECONDS_TO_LOG = 600.0


@dataclass(frozen=True)
class LoggedRun:
    run: RunDirectory
    config: TrackingConfig
    records: int
    """Lines of the metrics log."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise runs log --json` prints."""
        return {"run": self.run.folder, **self.config.model_dump(mode="json"), "records": self.records}


def log_run(name: str, config: TrackingConfig) -> LoggedRun:
    """TrackingError where a tracker cannot take the records, after the others have."""
    if not config.log_to:
        raise ConfigError(["--to names no tracker."])
    check_installed(config.log_to)
    run = open_any_run(name)
    problems: list[str] = []
    with run.locked():
        records = len(read_metrics_log(run.metrics))
        Following(run, config.log_to, config.project, problems.append).end(SECONDS_TO_LOG)
    if problems:
        raise TrackingError("\n".join(problems))
    return LoggedRun(run, config, records)
