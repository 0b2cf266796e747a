"""All trackers of a run: opened beside its metrics log, brought up to it, and ended as the run ended.

Each tracker has a thread and a queue: it may be slow, fail or hang, and the training goes on. Whatever it raises ends
it, and is reported once, by the training's thread.

Trackers receive values under the names that dashboards know from other trainers:

    a line of metrics.jsonl               numbers of its step
    kind step                             train/loss, train/learning_rate, train/grad_norm, train/epoch, …
    kind validation, score                eval/loss, eval/accuracy, eval/rouge_l, …
    kind earlier                          earlier/RUN/loss, earlier/RUN/exact, …
    kind budget                           forgetting/divergence, forgetting/anchor_weight
    kind ranks                            ranks/mean, ranks/budget, … and a histogram over layers
    kind back-off                         back_off/begun, back_off/learning_rate
    kind sample                           nothing: an answer is a text

Settings that are texts, such as a system message, are left out and say so.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from rankwise.config.experiment import Experiment
from rankwise.config.tracking import TrackerName
from rankwise.errors import ConfigError, RankwiseError, RunError, first_line
from rankwise.runs.data_report import DataReport
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import Evaluation, leaves
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.snapshot import RunSnapshot
from rankwise.tracking.trackers import TRACKERS, TrackedRun, Tracker

Row = Mapping[str, Any]
End = tuple[Mapping[str, float | str], int, str]
"""Results, the last step and how the run ended."""
MOST_WAITING = 100_000
"""Lines that may wait for a slow tracker."""
SECONDS_TO_OPEN, SECONDS_TO_END = 20.0, 60.0
"""That training waits for each tracker before its first step, and after its last one."""
OTHER_NAMES = {"gradient_norm": "grad_norm"}
"""Of a step: names that Hugging Face's Trainer made usual."""
NO_NUMBERS = ("kind", "step", "steps")
TEXTS = {"prompt", "completion", "system", "prompts", "new_tokens", "labels"}
"""Settings whose values are texts of the user or of the rows, by the last part of their names."""
NOT_LOGGED = "(a text, which is not logged)"
HISTOGRAM = "ranks/layers"
WEIGHTS = ".safetensors"


def check_installed(names: Sequence[TrackerName]) -> None:
    """ConfigError with the line that installs what is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError([
            f"logging to {name} needs {name}, which is not installed: pip install 'rankwise[{name}]'."
            for name in missing
        ])  # fmt: skip


class Follower:
    """One tracker. `report` receives one sentence if it ends before the run."""

    def __init__(self, name: TrackerName, run: TrackedRun, report: Callable[[str], None]) -> None:
        self._name: TrackerName = name
        self._run, self._report = run, report
        self._problem: str | None = None
        self._reported, self._opened = False, threading.Event()
        self._waiting: queue.Queue[Row | End] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"rankwise-{name}", daemon=True)
        self._thread.start()

    def wait_until_open(self, seconds: float) -> None:
        """Until the tracker is open or has failed, so that its imports take no time from the first steps."""
        self._opened.wait(seconds)
        self._report_once()

    def __call__(self, item: Row | End) -> None:
        """Take one line of the metrics log, without waiting."""
        if self._problem is None:
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                self._problem = f"it is slower than the training ({MOST_WAITING:,} records wait)"
        self._report_once()

    def end(self, end: End, seconds: float) -> None:
        """Let the tracker take what waits, for so many seconds at most."""
        self(end)
        try:
            self._thread.join(0 if self._problem else seconds)
            if self._problem is None and self._thread.is_alive():
                self._problem = f"it had not taken all records {seconds:.0f} s after the end"
        except KeyboardInterrupt:
            self._problem = "its end was not waited for"
        self._report_once()

    def _report_once(self) -> None:
        if self._problem is not None and not self._reported:
            self._reported = True
            self._report(
                f"logging to {self._name} ended: {self._problem}. The run and its own log are not affected; "
                f"`rankwise runs log RUN --to {self._name}` logs it again"
            )

    def _work(self) -> None:
        try:
            tracker = opened(self._name, self._run)
            self._opened.set()
            while self._problem is None:
                item = self._waiting.get()
                if isinstance(item, tuple):
                    return tracker.end(*item)
                if values := values_of(item):
                    tracker.log(values, int(item["step"]))
        except BaseException as error:  # whatever a library may raise, SystemExit included
            self._problem = f"{type(error).__name__}: {first_line(error)}"
            self._opened.set()


def opened(name: TrackerName, run: TrackedRun) -> Tracker:
    return TRACKERS[name](run)


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
        self.followers = [Follower(name, tracked, report) for name in names]
        for row in rows:
            self(row)
        for follower in self.followers:
            follower.wait_until_open(SECONDS_TO_OPEN)

    def __call__(self, row: Row) -> None:
        self._step = max(self._step, int(row["step"]))
        for follower in self.followers:
            follower(dict(row))

    def end(self, seconds: float = SECONDS_TO_END) -> None:
        """As the run's manifest says that it ended."""
        if not self.followers:
            return
        try:
            run = RunSnapshot.of(self._directory)
            results, status = results_of(run.manifest, run.evaluations), run.manifest.status
        except (RankwiseError, OSError):  # a full disk may have kept the manifest from being written
            results, status = {}, "failed"
        for follower in self.followers:
            follower.end((results, self._step, status), seconds)


def _last_step(rows: Sequence[Row]) -> int:
    try:
        return max((int(row["step"]) for row in rows), default=0)
    except (KeyError, TypeError, ValueError):
        raise RunError("the metrics log is damaged: a line has no step.") from None


def values_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one line of the metrics log, by name, and the rank of every layer."""
    match row.get("kind"):
        case "step":
            fields = {name: value for name, value in row.items() if name not in NO_NUMBERS}
            return _numeric({f"train/{OTHER_NAMES.get(name, name)}": value for name, value in fields.items()})
        case "validation":
            return _numeric({"eval/loss": row["loss"]})
        case "score":
            return _numeric({f"eval/{row['metric']}": row["value"]})
        case "earlier":
            return _numeric({f"earlier/{row['run']}/{name}": value for name, value in row["scores"].items()})
        case "budget":
            return _numeric({"forgetting/divergence": row["divergence"], "forgetting/anchor_weight": row["weight"]})
        case "back-off":
            return _numeric({"back_off/begun": row["begun"], "back_off/learning_rate": row["learning_rate"]})
        case "ranks":
            return _of_ranks(row, list(row["ranks"].values()))
        case _:
            return {}


def _of_ranks(row: Mapping[str, Any], ranks: list[int]) -> dict[str, Any]:
    values = {"ranks/budget": row["budget"], "ranks/of": row["of"]}
    if not ranks:
        return _numeric(values)
    values |= {"ranks/mean": sum(ranks) / len(ranks), "ranks/smallest": min(ranks), "ranks/largest": max(ranks)}
    return _numeric(values | {"ranks/empty_layers": sum(rank == 0 for rank in ranks)}) | {HISTOGRAM: ranks}


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """The settings by dotted names. Lists become one text."""
    return {
        name: NOT_LOGGED if value and TEXTS & set(name.split(".")) else _plain(value)
        for name, value in leaves(experiment.model_dump(mode="json")).items()
        if value is not None
    }


def facts_before(manifest: Manifest, data: DataReport | None) -> dict[str, Any]:
    """What is known before the first step."""
    forecast = None if manifest.forecast is None else manifest.forecast.model_dump(mode="json")
    parts = {
        "base": manifest.base_model.model_dump(exclude={"parts"}),
        "data": dict(_of_data(data)),
        "forecast": forecast,
    }
    return _slashed({name: value for name, value in parts.items() if value}) | {
        f"versions/{name}": value for name, value in manifest.versions.items()
    }


def _of_data(data: DataReport | None) -> Iterator[tuple[str, Any]]:
    """Counts, and never a name of a label, a column or a row."""
    if data is None:
        return
    yield "format", data.format
    for name in (
        "rows", "used", "skipped", "validation_rows", "sequences", "tokens", "loss_tokens", "eos_in_loss", "truncated",
        "without_loss_tokens", "duplicates", "near_duplicates", "control_tokens_as_text", "distinct_labels",
    ):  # fmt: skip
        yield name, getattr(data, name)
    if data.lengths is not None:
        yield "lengths", data.lengths.model_dump()
    if data.overlap is not None:
        yield from (("overlap/exact", data.overlap.exact), ("overlap/near", data.overlap.near))
    yield "sha256", ",".join(file.sha256 for file in data.files)


def results_of(manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> dict[str, float | str]:
    """What is known at the end: numbers and words."""
    given: dict[str, Any] = {"status": manifest.status}
    if manifest.forecast is not None:
        given |= _slashed({"forecast": manifest.forecast.model_dump(mode="json", exclude={"memory"})})
    if manifest.results is not None:
        given |= _slashed({"result": manifest.results.model_dump()})
    for file, sha256 in (manifest.result_sha256 or {}).items():
        if file.endswith(WEIGHTS):
            given[f"sha256/{file}"] = sha256
    for one in evaluations.values():
        given |= _of_evaluation(one)
    words = {name: value for name, value in given.items() if isinstance(value, str)}
    return _numeric(given) | words


def _of_evaluation(one: Evaluation) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for whose, scores in (("", one.tuned), ("base/", one.base)):
        for metric, measured in ({} if scores is None else scores.metrics).items():
            parts = measured.model_dump()
            given |= {f"evaluation/{one.task}/{whose}{metric}": parts["value"]}
            given |= {f"evaluation/{one.task}/{whose}{metric}/{end}": parts[end] for end in ("low", "high")}
    if one.forgetting is not None:
        names = ("kl", "low", "high", "delta_nll", "agreement")
        given |= {f"evaluation/forgetting/{name}": getattr(one.forgetting, name) for name in names}
    return given


def _slashed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace(".", "/"): value for name, value in leaves(values).items() if value is not None}


def _numeric(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else ", ".join(map(str, value)) if value else ""
