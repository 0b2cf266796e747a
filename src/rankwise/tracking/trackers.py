"""The trackers that people have, each through its own library: TensorBoard, Weights & Biases, MLflow and trackio.

    tracker.log({"train/loss": 1.2, "ranks/layers": [4, 2]}, step=3)     numbers, and lists for a histogram
    tracker.end({"result/seconds": 9.5, "status": "finished"}, 100, "finished")

A tracker receives no rows and no texts of a run. Its library is imported when it is opened. For a run that goes on it
is given all of the run's log again: all but MLflow and the network of W&B are then written anew.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rankwise.runs.directory import TRACKING

Values = Mapping[str, Any]
STARTED = "rankwise.started"
AT_ONCE = 100
"""Parameters, tags and numbers that one request to MLflow may carry."""
LONGEST, LONGEST_NAME = 500, 250
"""Characters of a value and of a name in MLflow."""
OF_MLFLOW = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
OF_WANDB = {"finished": 0, "failed": 1, "interrupted": 130}


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it. `started` tells apart two runs that had one name after the other."""

    name: str
    folder: Path
    project: str
    started: str
    settings: Values
    """The experiment by dotted names, without texts."""
    facts: Values
    """What is known before the first step: the data report in numbers, the base, the forecast."""
    last_step: int
    """The last step of the metrics log as the tracker is opened; 0 for a new run."""
    went_back: bool = False
    """Training went back to `last_step` after it had diverged, and takes other values from there on."""

    @property
    def tracking(self) -> Path:
        return self.folder / TRACKING


class Tracker(Protocol):
    def log(self, values: Values, step: int) -> None: ...

    def end(self, results: Values, step: int, status: str) -> None:
        """`results` are numbers and words, `status` is the manifest's."""
        ...


class TensorBoard:
    """Event files in the run's folder, so that `tensorboard --logdir runs` shows all runs."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.tracking / "tensorboard"
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=5)  # a page that is open forgets the rest
        settings = {name: value for name, value in run.settings.items() if value != ""}
        for summary in hparams(settings, {"train/loss": 0, "eval/loss": 0})[:2]:
            self._file.add_summary(summary)
        self._writer.add_text("settings", table(run.settings), 0)
        self._writer.add_text("facts", table(run.facts), 0)

    @property
    def _file(self) -> Any:
        return self._writer.file_writer

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                edges = np.arange(max(value) + 2) - 0.5  # one bar for each rank
                self._writer.add_histogram(name, np.array(value), step, bins=edges.tolist())
            else:
                self._writer.add_scalar(name, value, step)

    def end(self, results: Values, step: int, status: str) -> None:
        from torch.utils.tensorboard.summary import hparams

        numbers, words = _parted(results)
        self.log({name: value for name, value in numbers.items() if math.isfinite(value)}, step)
        self._writer.add_text("result", table(words), step)
        if status == "finished":
            self._file.add_summary(hparams({}, {})[2])  # the end of the session
        self._writer.close()


class Wandb:
    """Files for `wandb sync` in the run's folder, unless WANDB_MODE=online chooses the network. There the run of W&B
    continues after its last step."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # pyright: ignore[reportMissingImports]

        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        own = hashlib.sha256(f"{run.name} {run.started}".encode()).hexdigest()[:12]
        online = mode not in ("offline", "dryrun", "disabled")
        if not online:
            _forget_folders(list((run.tracking / "wandb").glob(f"offline-run-*-{own}")))
        (run.tracking / "wandb").mkdir(parents=True, exist_ok=True)
        self._library = wandb
        self._run = wandb.init(
            project=run.project, name=run.name, id=own, mode=mode, dir=str(run.tracking.resolve()), reinit="create_new",
            config={**run.settings, **run.facts}, resume="allow" if online else None,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
                login_timeout=1,
            ),
        )  # fmt: skip
        self._next = self._run.step if online and self._run.resumed else 0

    def log(self, values: Values, step: int) -> None:
        if step >= self._next:
            self._run.log(_drawn(values, self._library.Histogram), step=step)

    def end(self, results: Values, step: int, status: str) -> None:
        self._run.summary.update(dict(results))
        self._run.finish(exit_code=OF_WANDB.get(status, 1))


class Mlflow:
    """Files in the run's folder, or the server that MLFLOW_TRACKING_URI names. MLflow takes no number back, so a step
    that was computed again after a kill keeps its first numbers there."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for this, since its database has more
        from mlflow import entities  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        where = os.environ.get("MLFLOW_TRACKING_URI") or (run.tracking / "mlflow").resolve().as_uri()
        self._client, self._entities = MlflowClient(where), entities
        experiment = self._client.get_experiment_by_name(run.project)
        number = self._client.create_experiment(run.project) if experiment is None else experiment.experiment_id
        query = f"tags.`{STARTED}` = '{run.started}' and tags.`mlflow.runName` = '{run.name}'"
        earlier = self._client.search_runs([number], query, max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(number, run_name=run.name, tags={STARTED: run.started}).info.run_id
            self._send("params", entities.Param, run.settings)
            self._send("tags", entities.RunTag, run.facts)
        self._newest = self._newest_of(run)

    def _newest_of(self, run: TrackedRun) -> dict[str, tuple[int, float]]:
        """The newest step and value of each number that it has."""
        newest = {}
        for name in self._client.get_run(self._id).data.metrics:
            points = [(one.step, one.value) for one in self._client.get_metric_history(self._id, name)]
            points = [one for one in points if not run.went_back or one[0] <= run.last_step]
            newest[name] = max(points, key=lambda point: point[0], default=(-1, math.nan))
        return newest

    def log(self, values: Values, step: int) -> None:
        self._log({name: value for name, value in _parted(values)[0].items() if step > self._of(name)[0]}, step)

    def end(self, results: Values, step: int, status: str) -> None:
        numbers, words = _parted(results)
        self._log({name: value for name, value in numbers.items() if self._of(name) != (step, value)}, step)
        self._send("tags", self._entities.RunTag, words)
        self._client.set_terminated(self._id, OF_MLFLOW.get(status, "FAILED"))

    def _of(self, name: str) -> tuple[int, float]:
        return self._newest.get(valid(name), (-1, math.nan))

    def _log(self, numbers: Values, step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(valid(name), value, now, step) for name, value in numbers.items()]
        for part in _batches(metrics):
            self._client.log_batch(self._id, metrics=part)

    def _send(self, what: str, kind: Any, values: Values) -> None:
        for part in _batches(kind(valid(name), str(value)[:LONGEST]) for name, value in values.items()):
            self._client.log_batch(self._id, **{what: part})


class Trackio:
    """Its database on this machine (TRACKIO_DIR), or the Space or server that its own variables name."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._library, started = trackio, STARTED.replace(".", "/")
        remote = any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        with redirect_stdout(io.StringIO()), _without_network(not remote):
            if not remote:
                _forget_run(run, started)
            self._run = trackio.init(
                run.project, name=run.name, config={started: run.started, **run.settings, **run.facts},
                resume="never", auto_log_gpu=False, auto_log_cpu=False, embed=False,
            )  # fmt: skip

    def log(self, values: Values, step: int) -> None:
        self._run.log(_drawn(values, self._library.Histogram), step=step)

    def end(self, results: Values, step: int, status: str) -> None:
        self._run.log(dict(results), step=step)
        with redirect_stdout(io.StringIO()):
            self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
"""The library of each has the same name."""


def table(values: Values) -> str:
    """A table in Markdown; signs that would end a cell are escaped."""
    lines = (
        f"| {name} | {' '.join(str(value).split()).replace('|', chr(92) + '|')} |" for name, value in values.items()
    )
    return "\n".join(("| name | value |", "|---|---|", *lines))


def valid(name: str) -> str:
    """The name with the characters that MLflow allows, which column names in settings may exceed."""
    return re.sub(r"[^A-Za-z0-9_\-. /:]", "_", name)[:LONGEST_NAME]


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(items)
    return (every[start : start + AT_ONCE] for start in range(0, len(every), AT_ONCE))


def _parted(values: Values) -> tuple[dict[str, float], dict[str, str]]:
    """Numbers, and words."""
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    return numbers, {name: value for name, value in values.items() if isinstance(value, str)}


def _drawn(values: Values, histogram: Any) -> dict[str, Any]:
    return {name: histogram(value) if isinstance(value, list) else value for name, value in values.items()}


def _forget_folders(earlier: list[Path]) -> None:
    """Remove the folders of this run. Their names count seconds, and W&B writes nothing into one of the same name."""
    for folder in earlier:
        begun = folder.stat().st_mtime
        shutil.rmtree(folder)
        time.sleep(min(2.0, max(0.0, begun + 1.1 - time.time())))


def _forget_run(run: TrackedRun, started: str) -> None:
    """What trackio has of this very run."""
    from trackio import Api  # pyright: ignore[reportMissingImports]

    try:
        runs = list(Api().runs(run.project))
    except ValueError:  # the project does not exist yet
        return
    for one in runs:
        if one.name == run.name and (one.config or {}).get(started) == run.started:
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
