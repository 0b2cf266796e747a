"""Fine-tuning jobs: each is one file, `runs/.fine-tuning/jobs/ID.json`, and the run of its name.

A job's state is read from the queue and the run, and never written down: what was trained while no server ran, or was
killed, is known to the next one. Only what nothing else records is written down: the request, and that a client
cancelled or paused the job.

n_epochs                    training.epochs            auto: 2
batch_size                  training.batch_size        auto: 16, at most the rows
learning_rate_multiplier    training.learning_rate     auto: 1, times the rate that suits model and method
beta                        preference.beta            auto: 0.1
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rankwise.config.base import JsonObject
from rankwise.config.classification import PreferenceConfig
from rankwise.config.data import ValidationDataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import RankwiseError, RunError
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import History, read_history
from rankwise.runs.own_files import is_run, read_json
from rankwise.runs.queue import Queue
from rankwise.serving.bodies import BadRequest
from rankwise.serving.tuning.bodies import Hyperparameters, JobBody, PairHyperparameters
from rankwise.serving.tuning.files import (
    JOB,
    Files,
    Stored,
    StoredFile,
    checked_id,
    data_of,
    new_id,
    newest_first,
    no_such,
)
from rankwise.system.files import make_folders, write_json

MOST_JOBS, MOST_WAITING = 10_000, 100
PATIENCE = 15.0
"""Seconds in which a training that is stopped should end."""
ORGANIZATION = "rankwise"
Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
EPOCHS = 2


@dataclass(frozen=True)
class Base:
    """What a job trains: the model as it is named, its hidden size, and the run whose adapter it begins with."""

    config: ModelConfig
    width: int
    start_from: str | None = None


def resolved(hyperparameters: Hyperparameters, rows: int) -> Hyperparameters:
    """With a number for each `auto`."""
    batch = min(TrainingConfig().batch_size, max(rows, 1))
    auto: JsonObject = {"n_epochs": EPOCHS, "batch_size": batch, "learning_rate_multiplier": 1.0}
    if isinstance(hyperparameters, PairHyperparameters):
        auto["beta"] = PreferenceConfig().beta
    values = hyperparameters.model_dump()
    return type(hyperparameters)(**{name: auto[name] if value == "auto" else value for name, value in values.items()})


class Job(Stored):
    """What is written down."""

    model: str
    training_file: str
    validation_file: str | None
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    dpo: bool
    hyperparameters: Hyperparameters | PairHyperparameters
    """As they were resolved."""
    cancelled_at: int | None = None
    paused_at: int | None = None
    result_file: str | None = None
    model_deleted: bool = False

    @property
    def run(self) -> str:
        return self.id

    @property
    def tuned(self) -> str:
        """The name of the model that comes of it."""
        return f"ft:{self.model}:{ORGANIZATION}:{self.suffix or ''}:{self.id[-8:]}"


@dataclass(frozen=True)
class State:
    """Where a job stands. `problem` is why it failed."""

    status: Status
    problem: str | None = None
    manifest: Manifest | None = None

    @property
    def ended_at(self) -> int | None:
        ended = None if self.manifest is None else self.manifest.ended
        return None if ended is None else seconds_of(ended)


@dataclass(frozen=True)
class JobFiles:
    """What is written down of each job."""

    folder: Path

    def ids(self) -> list[str]:
        return [file.stem for file in self.folder.glob(f"{JOB}-*.json")]

    def every(self) -> list[Job]:
        return newest_first(self.folder.glob(f"{JOB}-*.json"), Job)

    def get(self, name: str) -> Job:
        try:
            return read_json(self._file(checked_id(JOB, name)), Job)
        except RunError:
            raise no_such(JOB, name) from None

    def write(self, job: Job) -> None:
        make_folders(self.folder)
        write_json(self._file(job.id), job.model_dump(mode="json"))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@dataclass(frozen=True)
class Jobs:
    stored: JobFiles
    files: Files
    queue: Queue
    _changing: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def create(self, body: JobBody, base: Base) -> Job:
        """Let a training wait for its turn. BadRequest with what is wrong."""
        apart = body.validation_file
        training = _rows(self.files, body.training_file, "training_file", body)
        validation = None if apart is None else _rows(self.files, apart, "validation_file", body)
        with self._changing:
            if len(self.stored.ids()) >= MOST_JOBS or len(self.queue.entries()) >= MOST_WAITING:
                raise BadRequest(
                    f"at most {MOST_WAITING} jobs may wait, and this server has {MOST_JOBS:,} at most.", status=429
                )
            job = Job(
                id=new_id(JOB), created_at=int(time.time()), model=body.model, training_file=training.id,
                validation_file=None if validation is None else validation.id, suffix=body.suffix,
                seed=secrets.randbelow(2**31) if body.seed is None else body.seed, metadata=body.metadata,
                dpo=body.is_dpo, hyperparameters=resolved(body.chosen, training.content.rows),
            )  # fmt: skip
            try:
                self.queue.add(job.run, _experiment(job, base, self.files, training, validation).explicit)
            except RankwiseError as error:
                raise BadRequest(str(error)) from None
            self.stored.write(job)
        return job

    def that_made(self, model: str) -> Job | None:
        """The job whose model has this name."""
        number = model.rpartition(":")[2]
        if not re.fullmatch(r"[0-9a-f]{8}", number):
            return None
        for name in [name for name in self.stored.ids() if name.endswith(number)]:
            with suppress(BadRequest):
                if (job := self.stored.get(name)).tuned == model and self.state(job).status == "succeeded":
                    return job
        return None

    def change(self, job: Job, **values: Any) -> Job:
        with self._changing:
            changed = self.stored.get(job.id).model_copy(update=values)
            self.stored.write(changed)
        return changed

    def state(self, job: Job) -> State:
        manifest = _manifest(self.run_of(job))
        if manifest is not None and manifest.status == "finished":
            return State("succeeded", manifest=manifest)
        if job.cancelled_at is not None:
            return State("cancelled", manifest=manifest)
        if job.paused_at is not None:
            return State("paused", manifest=manifest)
        waits, working = self.queue.entry(job.run).exists(), self.queue.working()
        if working is not None and working.run == job.run:
            return State("running", manifest=manifest)
        return State("queued", manifest=manifest) if waits else self._left(job)

    def _left(self, job: Job) -> State:
        """The state of a job that was found neither waiting nor running; it may have begun or ended just now."""
        ended, manifest = self.queue.ended(job.run), _manifest(self.run_of(job))
        if manifest is not None and manifest.status == "finished":
            return State("succeeded", manifest=manifest)
        if ended is not None:
            return State("failed", ended.problem or "the training ended without a result.", manifest)
        if self.queue.entry(job.run).exists() or self.queue.working() is not None:
            return State("queued", manifest=manifest)  # it begins just now
        return State("failed", "it was taken out of the queue.", manifest)

    def cancel(self, job: Job) -> Job:
        return self._halt(job, "cancelled", cancelled_at=int(time.time()), paused_at=None)

    def pause(self, job: Job) -> Job:
        """The training stops as Ctrl-C stops it, and can go on from its last checkpoint."""
        return self._halt(job, "paused", paused_at=int(time.time()))

    def _halt(self, job: Job, how: str, **values: Any) -> Job:
        with self._changing:
            status = self.state(job).status
            if status in ENDED or (status == "paused" and how == "paused"):
                raise BadRequest(f"job {job.id} is {status}, so it cannot be {how}.")
            changed = self.change(job, **values)
            _end(self.queue, job.run)
        return changed

    def resume(self, job: Job, base: Base) -> Job:
        """From the last checkpoint, or from the first step where there is none."""
        with self._changing:
            if self.state(job).status != "paused":
                raise BadRequest(f"job {job.id} is {self.state(job).status}, so it cannot be resumed.")
            run = self.run_of(job)
            try:
                training = self.files.get(job.training_file, "training_file")
                validation = self.files.get(job.validation_file) if job.validation_file is not None else None
                experiment = _experiment(job, base, self.files, training, validation)
                again = bool(run.checkpoints.named)
                self.queue.add(job.run, experiment.explicit, resume=again, restart=not again and is_run(run.folder))
            except RankwiseError as error:
                raise BadRequest(str(error)) from None
            return self.change(job, paused_at=None)

    def using(self, file: str) -> list[Job]:
        """The unfinished jobs that read a file."""
        reading = [one for one in self.stored.every() if file in (one.training_file, one.validation_file)]
        return [one for one in reading if self.state(one).status not in ENDED]

    def run_of(self, job: Job) -> RunDirectory:
        return RunDirectory(self.queue.runs_folder / job.run)

    def history(self, job: Job) -> History:
        """Empty before the first step."""
        with suppress(RunError, OSError):
            return read_history(self.run_of(job).metrics)
        return History()


def _manifest(run: RunDirectory) -> Manifest | None:
    with suppress(RunError):
        return run.manifest()
    return None


def _rows(files: Files, name: str, parameter: str, body: JobBody) -> StoredFile:
    file = files.get(name, parameter)
    if file.purpose != "fine-tune":
        raise BadRequest(f"{parameter} has the purpose {file.purpose}; fine-tune is expected.", parameter=parameter)
    if file.content.pairs != body.is_dpo:
        rows, method = ("pairs of answers", "dpo") if file.content.pairs else ("answers", "supervised")
        raise BadRequest(
            f"{parameter} has {rows}, which the method {method} learns from. Set method.type to it, or give "
            "another file.", parameter=parameter,
        )  # fmt: skip
    return file


def _experiment(job: Job, base: Base, files: Files, training: StoredFile, validation: StoredFile | None) -> Experiment:
    """ConfigError where the numbers of a job are refused."""
    own: JsonObject = job.hyperparameters.model_dump()
    data = data_of(files.training(training), training.content)
    if validation is not None:
        apart = ValidationDataConfig(
            path=str(files.training(validation)), format=data.format, ignore_columns=validation.content.ignored
        )
        data = data.model_copy(update={"validation": apart})
    settings: JsonObject = {
        "model": base.config.model_copy(update={"dtype": "auto", "device": "auto"}), "data": data, "run": job.run,
        "objective": "preference" if job.dpo else "causal-lm",
        "adapter": {"method": "lora", "start_from": base.start_from},
        "training": {"epochs": own["n_epochs"], "batch_size": own["batch_size"], "seed": job.seed},
    } | ({"preference": {"beta": own["beta"]}} if job.dpo else {})  # fmt: skip
    experiment = Experiment(**settings)
    rate = own["learning_rate_multiplier"] * experiment.training.highest_rate(base.width, experiment.auto_rate)
    return Experiment(**settings | {"training": settings["training"] | {"learning_rate": rate}})


def _end(queue: Queue, run: str) -> None:
    """Take a run out of the queue, or stop it, and wait a while for its end. Before it can be stopped, it may be
    about to begin."""
    with suppress(RunError):
        queue.remove(run)
    signalled, until = False, time.monotonic() + PATIENCE
    while (own := queue.working()) is not None and own.run == run and time.monotonic() < until:
        with suppress(RunError):
            if not signalled:
                queue.stop(run)
                signalled = True
        time.sleep(0.05)


def seconds_of(moment: str) -> int | None:
    """None for what is no moment, in a manifest that was damaged."""
    with suppress(ValueError, OverflowError):
        return int(datetime.fromisoformat(moment).timestamp())
    return None
