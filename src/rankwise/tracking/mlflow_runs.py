"""MLflow: files in the run's folder, or the server that MLFLOW_TRACKING_URI names.

A run that goes on continues the run of MLflow with its name and its beginning. MLflow takes no number back, so a step
that was computed again after a kill keeps its first numbers there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rankwise.tracking.tracker import Known, TrackedRun

STARTED = "rankwise.started"
AT_ONCE = 100
"""Parameters and tags that one request may carry."""
LONGEST, LONGEST_NAME = 500, 250
"""Characters of a value and of a name."""
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowRuns:
    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for this, since its database has more
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._went_back, self._last_step = run.went_back, run.last_step
        where = os.environ.get("MLFLOW_TRACKING_URI") or (run.tracking / "mlflow").resolve().as_uri()
        self._client = MlflowClient(where)
        experiment = self._client.get_experiment_by_name(run.project)
        number = self._client.create_experiment(run.project) if experiment is None else experiment.experiment_id
        query = f"tags.`{STARTED}` = '{run.started}' and tags.`mlflow.runName` = '{run.name}'"
        earlier = self._client.search_runs([number], query, max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            begun = self._client.create_run(number, run_name=run.name, tags={STARTED: run.started})
            self._id = begun.info.run_id
            self._log_settings(run)

    def _log_settings(self, run: TrackedRun) -> None:
        from mlflow.entities import Param, RunTag  # pyright: ignore[reportMissingImports]

        settings = ((name, str(value)[:LONGEST]) for name, value in run.settings.items())
        for part in _parts(settings):
            self._client.log_batch(self._id, params=[Param(valid(name), value) for name, value in part])
        for part in _parts((name, str(value)[:LONGEST]) for name, value in run.facts.items()):
            self._client.log_batch(self._id, tags=[RunTag(valid(name), value) for name, value in part])

    def known(self) -> Known:
        latest = self._client.get_run(self._id).data.metrics
        newest = {}
        for name in latest:
            points = [(one.step, one.value) for one in self._client.get_metric_history(self._id, name)]
            if self._went_back:
                points = [one for one in points if one[0] <= self._last_step]
            if points:
                newest[name] = max(points, key=lambda point: point[0])
        return Known(newest)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        for part in _parts(iter(numbers.items())):
            self._client.log_batch(self._id, metrics=[Metric(valid(name), value, now, step) for name, value in part])

    def log_histogram(self, name: str, values: Sequence[int], step: int) -> None: ...

    def log_result(self, numbers: Mapping[str, float], words: Mapping[str, str], step: int) -> None:
        from mlflow.entities import RunTag  # pyright: ignore[reportMissingImports]

        self.log(numbers, step)
        for part in _parts((name, value[:LONGEST]) for name, value in words.items()):
            self._client.log_batch(self._id, tags=[RunTag(valid(name), value) for name, value in part])

    def close(self, status: str) -> None:
        self._client.set_terminated(self._id, STATUS.get(status, "FAILED"))


def valid(name: str) -> str:
    """The name with the characters that MLflow allows, which column names in settings may exceed."""
    return re.sub(r"[^A-Za-z0-9_\-. /:]", "_", name)[:LONGEST_NAME]


def _parts(items: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(items, AT_ONCE)):
        yield part
