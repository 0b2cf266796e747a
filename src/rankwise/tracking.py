"""The trackers that people have, each through its own library: TensorBoard, Weights & Biases, MLflow and trackio.

    tracker.log({"train/loss": 1.2, "ranks/layers": [4, 2]}, step=3)     numbers, and lists for a histogram
    tracker.end({"result/seconds": 9.5, "status": "finished"}, 100, "finished")

They are opened beside a run's metrics log, brought up to it, follow it, and end as the run ended. A thread gives them
the lines of a queue, so they may be slow, fail or hang, and the training goes on. Whatever one raises ends it, and is
reported once, by the training's thread.

Trackers receive values under the names that dashboards know from other trainers:

    a line of metrics.jsonl               numbers of its step
    kind step                             train/loss, train/learning_rate, train/grad_norm, train/epoch, …
    kind validation, score                eval/loss, eval/accuracy, eval/rouge_l, …
    kind earlier                          earlier/RUN/loss, earlier/RUN/exact, …
    kind budget                           forgetting/divergence, forgetting/anchor_weight
    kind ranks                            ranks/mean, ranks/budget, … and a histogram over layers
    kind back-off                         back_off/begun, back_off/learning_rate
    kind sample                           nothing: an answer is a text

A tracker receives no rows and no texts of a run; settings that are texts, such as a system message, say so. Its library
is imported when it is opened. For a run that goes on it is given all of the run's log again: all but MLflow and the
network of W&B are then written anew.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rankwise.config.base import JsonObject
from rankwise.config.experiment import TrackerName
from rankwise.errors import RankwiseError, RunError, first_line
from rankwise.runs.data_report import DataReport
from rankwise.runs.directory import TRACKING, RunDirectory
from rankwise.runs.evaluations import Evaluation, leaves
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.snapshot import RunSnapshot

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

    @classmethod
    def of(cls, run: RunSnapshot, project: str, last_step: int, went_back: bool) -> TrackedRun:
        return cls(
            name=run.name, folder=run.folder, project=project, started=run.manifest.started,
            settings=settings_of(run.experiment.model_dump(mode="json")),
            facts=facts_before(run.manifest, run.data_report), last_step=last_step, went_back=went_back,
        )  # fmt: skip

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
                bars = range(max(value) + 1)  # one for each rank
                squares, ends = sum(rank * rank for rank in value), [rank + 0.5 for rank in bars]
                self._writer.add_histogram_raw(
                    name, min(value), max(value), len(value), sum(value), sum_squares=squares, bucket_limits=ends,
                    bucket_counts=list(map(value.count, bars)), global_step=step,
                )  # fmt: skip
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
    """Logs to Trackio's database on this machine (TRACKIO_DIR), or to the Space or server that Trackio's environment
    variables name."""

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


MOST_WAITING = 100_000
"""Lines that may wait for slow trackers."""
SECONDS_TO_OPEN, SECONDS_TO_END = 20.0, 60.0
"""That training waits before its first step, so that imports take no time from it, and after its last one."""


def opened(name: TrackerName, run: TrackedRun) -> Tracker:
    return TRACKERS[name](run)


class Following:
    """Callable with each line of the metrics log as it is written. `report` receives a sentence for each tracker that
    ends before the run."""

    def __init__(
        self, directory: RunDirectory, names: Sequence[TrackerName], project: str, report: Callable[[str], None],
        went_back: bool = False,
    ) -> None:  # fmt: skip
        self._directory, self._report, self._step = directory, report, 0
        self.active: Sequence[TrackerName] = names
        self._waiting: queue.Queue[tuple[str, Values, int]] = queue.Queue(MOST_WAITING)
        """The status of the run, values and their step."""
        self._problems: queue.Queue[tuple[TrackerName, str]] = queue.Queue()
        if not names:
            return
        rows = read_metrics_log(directory.metrics) if directory.metrics.exists() else []
        self._step = _last_step(rows)
        run, are_open = TrackedRun.of(RunSnapshot.of(directory), project, self._step, went_back), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(run, are_open.set), name="rankwise-log", daemon=True)
        self._thread.start()
        for row in rows:
            self(row)
        are_open.wait(SECONDS_TO_OPEN)
        self._report_problems()

    def __call__(self, row: Values) -> None:
        """Take one line, without waiting."""
        step = int(row["step"])
        self._step = max(self._step, step)
        if values := values_of(row):
            self._send("running", values, step)
        self._report_problems()

    def end(self, seconds: float = SECONDS_TO_END) -> None:
        """As the run's manifest says that it ended. The trackers take what waits, for so many seconds at most."""
        if self.active:
            try:
                run = RunSnapshot.of(self._directory)
                results, status = results_of(run.manifest, run.evaluations), run.manifest.status
            except (RankwiseError, OSError):  # a full disk may have kept the manifest from being written
                results, status = {}, "failed"
            self._send(status, results, self._step)
            try:
                self._thread.join(seconds if self.active else 0)
                self._give_up(f"it had not taken all records {seconds:.0f} s after the end")
            except KeyboardInterrupt:
                self._give_up("its end was not waited for")
        self._report_problems()

    def _send(self, status: str, values: Values, step: int) -> None:
        try:
            if self.active:
                self._waiting.put_nowait((status, values, step))
        except queue.Full:
            self._give_up(f"it is slower than the training ({MOST_WAITING:,} records wait)")

    def _give_up(self, why: str) -> None:
        for name in self.active:
            self._problems.put((name, why))
        self.active = []

    def _report_problems(self) -> None:
        while not self._problems.empty():
            name, problem = self._problems.get()
            self._report(
                f"logging to {name} ended: {problem}. The run and its own log are not affected; "
                f"`rankwise runs log RUN --to {name}` logs it again"
            )

    def _work(self, run: TrackedRun, are_open: Callable[[], None]) -> None:
        trackers: dict[TrackerName, Tracker] = {}
        for name in self.active:
            with self._guarded(name):
                trackers[name] = opened(name, run)
        are_open()
        status = "running"
        while self.active and status == "running":
            status, values, step = self._waiting.get()
            for name in self.active:
                with self._guarded(name):
                    if status == "running":
                        trackers[name].log(values, step)
                    else:
                        trackers[name].end(values, step, status)
        self.active = []

    @contextmanager
    def _guarded(self, name: TrackerName) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # whatever a library may raise, SystemExit included
            if name in self.active:
                self.active = [one for one in self.active if one != name]
                self._problems.put((name, f"{type(error).__name__}: {first_line(error)}"))


def _last_step(rows: Sequence[Values]) -> int:
    try:
        return max((int(row["step"]) for row in rows), default=0)
    except (KeyError, TypeError, ValueError):
        raise RunError("the metrics log is damaged: a line has no step.") from None


NAMES = {"gradient_norm": "grad_norm", "weight": "anchor_weight"}
"""Names that Hugging Face's Trainer made usual, and one that would say too little."""
FOLDERS = {"step": "train", "budget": "forgetting", "back-off": "back_off"}
"""The folder under which numbers are logged, for the kinds of lines whose numbers are all logged."""
NO_NUMBERS = ("step", "steps")
TEXTS = {"prompt", "completion", "system", "prompts", "new_tokens", "labels"}
"""Settings whose values are texts of the user or of the rows, by the last part of their names."""
NOT_LOGGED = "(a text, which is not logged)"
HISTOGRAM = "ranks/layers"
WEIGHTS = ".safetensors"
COUNTS = {
    "format", "rows", "used", "skipped", "validation_rows", "sequences", "tokens", "loss_tokens", "eos_in_loss",
    "truncated", "without_loss_tokens", "duplicates", "near_duplicates", "control_tokens_as_text", "distinct_labels",
    "lengths",
}  # fmt: skip
"""Fields of a data report that are logged. No name of a label, a column or a row is in them."""


def values_of(row: Values) -> dict[str, Any]:
    """The numbers of one line of the metrics log, by name, and the rank of every layer."""
    match row.get("kind"):
        case "step" | "budget" | "back-off" as kind:
            fields = {name: value for name, value in row.items() if name not in NO_NUMBERS}
            return _numeric({f"{FOLDERS[kind]}/{NAMES.get(name, name)}": value for name, value in fields.items()})
        case "validation":
            return _numeric({"eval/loss": row["loss"]})
        case "score":
            return _numeric({f"eval/{row['metric']}": row["value"]})
        case "earlier":
            return _numeric({f"earlier/{row['run']}/{name}": value for name, value in row["scores"].items()})
        case "ranks":
            return _of_ranks(row, list(row["ranks"].values()))
        case _:
            return {}


def _of_ranks(row: Values, ranks: list[int]) -> dict[str, Any]:
    values = {"ranks/budget": row["budget"], "ranks/of": row["of"]}
    if not ranks:
        return _numeric(values)
    values |= {"ranks/mean": sum(ranks) / len(ranks), "ranks/smallest": min(ranks), "ranks/largest": max(ranks)}
    return _numeric(values | {"ranks/empty_layers": sum(rank == 0 for rank in ranks)}) | {HISTOGRAM: ranks}


def settings_of(settings: JsonObject) -> dict[str, Any]:
    """The settings by dotted names. Lists become one text."""
    return {
        name: NOT_LOGGED if value and TEXTS & set(name.split(".")) else _plain(value)
        for name, value in leaves(settings).items()
        if value is not None
    }


def facts_before(manifest: Manifest, data: DataReport | None) -> dict[str, Any]:
    """What is known before the first step."""
    facts: dict[str, Any] = {"base": manifest.base_model.model_dump(exclude={"parts"})}
    if data is not None:
        overlap = {} if data.overlap is None else data.overlap.model_dump(include={"exact", "near"})
        hashes = ",".join(file.sha256 for file in data.files)
        facts["data"] = {**data.model_dump(include=COUNTS), "overlap": overlap or None, "sha256": hashes}
    if manifest.forecast is not None:
        facts["forecast"] = manifest.forecast.model_dump(mode="json")
    return _slashed(facts) | {f"versions/{name}": value for name, value in manifest.versions.items()}


def results_of(manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> dict[str, float | str]:
    """What is known at the end: numbers and words."""
    given: dict[str, Any] = {"status": manifest.status}
    for name, part in (("forecast", manifest.forecast), ("result", manifest.results)):
        given |= {} if part is None else _slashed({name: part.model_dump(mode="json", exclude={"memory"})})
    hashes = (manifest.result_sha256 or {}).items()
    given |= {f"sha256/{file}": digest for file, digest in hashes if file.endswith(WEIGHTS)}
    for one in evaluations.values():
        for whose, scores in (("", one.tuned), ("base/", one.base)):
            for metric, measured in ({} if scores is None else scores.metrics).items():
                ends = {"": measured.value, "/low": measured.low, "/high": measured.high}
                given |= {f"evaluation/{one.task}/{whose}{metric}{end}": value for end, value in ends.items()}
        if one.forgetting is not None:
            names = {"kl", "low", "high", "delta_nll", "agreement"}
            given |= _slashed({"evaluation": {"forgetting": one.forgetting.model_dump(include=names)}})
    return _numeric(given) | {name: value for name, value in given.items() if isinstance(value, str)}


def _slashed(values: Values) -> dict[str, Any]:
    return {name.replace(".", "/"): value for name, value in leaves(values).items() if value is not None}


def _numeric(values: Values) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else ", ".join(map(str, value)) if value else ""
