"""The models that jobs have made, which are served as soon as they are finished, and again after a restart."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from rankwise.errors import RankwiseError, typed
from rankwise.runs.directory import RunDirectory
from rankwise.serving.bodies import BadRequest
from rankwise.serving.changes import Changes
from rankwise.serving.engine import Stopped
from rankwise.serving.served import Serving
from rankwise.serving.tuning.events import history_of, results_of
from rankwise.serving.tuning.experiments import Base
from rankwise.serving.tuning.files import Content
from rankwise.serving.tuning.jobs import ENDED, Job, Jobs, State
from rankwise.system.files import write_atomic

BETWEEN = 1.0
"""Seconds between two looks at unfinished jobs."""
_log = logging.getLogger(__name__)


class Offered:
    """Looks after jobs in a thread of its own: it starts a worker where runs wait and none works, as after a crash, and
    serves what is finished."""

    def __init__(self, serving: Serving, changes: Changes, jobs: Jobs) -> None:
        self.serving, self.jobs = serving, jobs
        self._changes = changes
        self._settling = threading.RLock()
        self._settled: dict[str, str | None] = {}
        """Ended jobs that were handled, and why the model of one is not served."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="rankwise-jobs", daemon=True)

    def start(self) -> None:
        """What is finished already is served before the first request."""
        self.settle()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def settle(self) -> None:
        self.jobs.queue.start_worker()
        unsettled = [name for name in self.jobs.ids() if name not in self._settled]
        jobs = list[Job]()
        for name in unsettled:
            with suppress(BadRequest):  # damaged
                jobs.append(self.jobs.get(name))
        for job in sorted(jobs, key=lambda one: one.created_at, reverse=True):
            self.look_at(job)

    def look_at(self, job: Job) -> tuple[Job, State]:
        """The job as it stands. Its model answers before the job is reported as succeeded."""
        with self._settling:
            state = self.jobs.state(job)
            if state.status in ENDED and job.id not in self._settled:
                self._settled[job.id] = None
                if state.status == "succeeded":
                    self._finish(job)
            return self.jobs.get(job.id), state

    def warning(self, job: Job) -> str | None:
        return self._settled.get(job.id)

    def base(self, name: str) -> Base:
        """What a job trains that names this model. BadRequest (404) where it is none that can be trained."""
        model, served = self.serving.model, self.serving.models.get(name)
        if served is not None and served.adapter is None:
            return Base(model.spec, model.width)
        if served is not None and (made := self.jobs.that_made(name)) is not None:
            return Base(model.spec, model.width, made.run)
        known = ", ".join(one.name for one in self.serving.models.values() if one.adapter is None)
        raise BadRequest(
            f"no model {name[:80]!r} can be trained here. The base is called {known}; rankwise serve --alias adds "
            "names.", status=404, parameter="model",
        )  # fmt: skip

    def delete(self, name: str) -> None:
        """BadRequest where no job made this model. Its run stays."""
        with self._settling:
            job = self.jobs.that_made(name)
            if job is None or job.model_deleted:
                raise BadRequest(
                    f"no fine-tuning job of this server made {name[:80]!r}.", status=404, parameter="model"
                )
            self.jobs.change(job, model_deleted=True)
            with suppress(BadRequest):  # it was not loaded
                self._changes.unload(name)

    def _finish(self, job: Job) -> None:
        if job.result_file is None:
            text = results_of(history_of(job, self.jobs.queue)).encode()
            stored = self.jobs.files.add(
                f"results-{job.id}.csv", "fine-tune-results", lambda path: write_atomic(path, text),
                lambda folder: Content(),
            )  # fmt: skip
            self.jobs.change(job, result_file=stored.id)
        if not job.model_deleted and job.tuned not in self.serving.models:
            try:
                self._changes.load(job.tuned, RunDirectory(self.jobs.queue.runs_folder / job.run).folder)
            except (RankwiseError, OSError) as error:  # its files may be gone
                self._settled[job.id] = f"The model is not served: {typed(error)}"

    def _follow(self) -> None:
        while not self._stop.wait(BETWEEN):
            try:
                self.settle()
            except Stopped:
                return
            except Exception as error:  # a full disk, say: the next look may do better
                _log.error("fine-tuning jobs could not be looked at", exc_info=error)
