"""The manifest of a run: versions, machine, data and base model by hash, how the learning rate was chosen, and how it
ended."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field, model_validator

from rankwise.config.base import Config, JsonObject
from rankwise.runs.lineage import Round
from rankwise.runs.measured import PairResults
from rankwise.runs.row_facts import ReplayFacts
from rankwise.system.extras import installed_version
from rankwise.system.launched import launched
from rankwise.system.processor import processor_name, usable_cores


class TrialFacts(Config):
    """One training of a few steps."""

    stage: int
    """0 is the search for the rates that diverge; the others are the stages of successive halving."""
    learning_rate: float
    """The highest of its schedule."""
    stands_for: float
    """The rate of the run, whose steps have more rows."""
    steps: int
    batch_size: int
    loss: float | None
    """On the rows apart; None where training diverged, and for the range, which is not measured."""


class Tuning(Config):
    """How the learning rate was chosen. Without trials it is the default, and `why` names the reason."""

    learning_rate: float
    default: float
    """What `auto` would have been."""
    why: str
    trials: tuple[TrialFacts, ...] = ()
    loss_before: float | None = None
    """On the same rows, before training."""
    rows: int = 0
    """Rows that the trials were measured on."""
    rows_from: Literal["validation", "training", "nowhere"] = "nowhere"
    """`training`: rows that trials set aside, and that the run itself learns from."""
    flat_from: float | None = None
    """From this rate to `flat_to` the trials' losses are less than one percent above the least."""
    flat_to: float | None = None
    seconds: float = 0.0
    """That the trials took."""
    forecast_seconds: float | None = None
    steps: float = 0.0
    """What the trials cost, in steps of the run, by the number of tokens."""

    def lines(self) -> list[str]:
        """For the terminal: what was chosen and why, and the table of the trials."""
        if not self.trials:
            return [f"learning rate {self.learning_rate:.3g}: {self.why}"]
        table = [
            f"  {one.stands_for:<10.3g}{one.steps:>3} steps of {one.batch_size} rows at {one.learning_rate:<10.3g}"
            + ("diverged" if one.loss is None else f"{one.loss:.4f}")
            for one in self.trials
            if one.stage
        ]
        return [f"learning rate {self.learning_rate:.3g}, chosen by {len(self.trials)} trials: {self.why}",
                "  rate      trial                               loss", *table]  # fmt: skip


PACKAGES = ("rankwise", "torch", "transformers", "tokenizers", "safetensors")
BackendName = Literal["eager", "fused", "compiled"]


class BaseModelFacts(Config):
    """The weights that a run began with; base/inspection.py computes `fingerprint`."""

    name: str
    source: str
    fingerprint: str
    dtype: str
    device: str
    quantization: str | None = None
    """How the frozen weights were stored, such as `nf4`; None in full."""
    parts: dict[str, str] = Field(default_factory=dict)
    """The fingerprint of each file beside the weights, and of these; empty where it is not known."""

    def refusal(self, described: str, base_now: str, fingerprint: str, parts: Mapping[str, str]) -> str:
        """That the base model that `base_now` names is not what a run began with, and what is another."""
        changed = [name for name in self.parts if self.parts[name] != parts.get(name)] if parts else []
        what = "weights, settings or tokenizer" if not changed else " and ".join(reversed(changed))
        trained = f"{described} was trained on {self.name} from {self.source} ({self.fingerprint})"
        return f"{trained}; {base_now} has different {what} ({fingerprint})."


TRAINING = "training.json"
"""Beside a result: its `TrainingFacts`."""


class TrainingFacts(Config):
    """What a result was trained by, for those who have only its folder. The hashes of its files and rows of data, and
    the chat template, are in the data report beside it."""

    format: Literal[1] = 1
    settings: JsonObject
    """The settings of the run. Of a path that one of them names, there is the last part."""
    base_model: BaseModelFacts
    learning_rate: float
    backend: BackendName
    versions: dict[str, str]
    machine: JsonObject
    weights: dict[Annotated[str, Field(pattern=r"^[\w-]+\.safetensors\Z")], str] = Field(default_factory=dict)
    """The SHA-256 of each file of weights as training wrote it; an export may hold them in another form."""

    @property
    def threads(self) -> int | None:
        """The number of threads of torch."""
        return number if isinstance(number := self.machine.get("threads"), int) else None


class DataFacts(Config):
    """A summary of the training data; data_report.json has details. A sequence is one training example, usually a
    row."""

    path: str
    sha256: str
    format: str
    rows: int
    training_sequences: int
    validation_sequences: int
    rows_too_long: int
    tokens: int
    loss_tokens: int


class AnchorFacts(Config):
    """The text on which a run was held to its base."""

    text: str
    """The name of the text, and which blocks of it were used."""
    sha256: str
    """Hash of these blocks, as token ids."""
    origins: tuple[str, ...] = ()
    """The SHA-256 of the files that it comes from."""


class KeptBudget(Config):
    """How a budget of forgetting was kept."""

    forget_at_most: float
    divergence: float
    """KL divergence of the result from its base on ordinary text, in nats per token."""
    strength: float
    """What the change of the last step was multiplied by; 1 where it kept the budget as it was."""
    divergence_at_full_strength: float
    validation_loss_at_full_strength: float | None
    """None without validation rows."""


class KeptTask(Config):
    """The accuracy on one task, on rows that did not decide about the strength."""

    task: str
    rows: int
    base: float
    result: float
    difference: float
    """Accuracy of the result minus that of the base; `low` and `high` are its paired interval of 95 %. 0.01 is one
    percentage point."""
    low: float
    high: float


class KeptAccuracy(Config):
    """How a budget of accuracy was kept."""

    points: float
    """Percentage points of accuracy that each task may lose."""
    is_kept: bool
    """On the rows that decided. False where no strength of 0.1 or more keeps the budget; nothing is scaled then."""
    strength: float
    """What the change of the last step was multiplied by; 1 where it kept the budget as it was."""
    lost_at_full_strength: float
    """Percentage points that the task with the largest loss loses, on the rows that decided."""
    lost: float
    """Percentage points that the task with the largest loss loses at `strength`."""
    tasks: tuple[KeptTask, ...]
    validation_loss_at_full_strength: float | None
    """None without validation rows."""


class EarlierRound(Config):
    """What became of a run that this one goes on from, on that run's validation rows."""

    name: str
    rows: int
    answers: int
    """Rows that were answered, of which scores of answers are; 0 for other scores."""
    before: dict[str, float]
    """The loss and the scores before the first step."""
    after: dict[str, float]

    def describe(self) -> str:
        changes = [f"{name} {self.before[name]:.4g} -> {self.after[name]:.4g}" for name in self.before]
        answered = f" (scores of {self.answers} answers)" if self.answers else ""
        return f"{self.name}, on {self.rows:,} of its validation rows: {', '.join(changes)}{answered}"


class Results(Config):
    steps: int
    loss: float
    validation_loss_before: float | None
    validation_loss_after: float | None
    validation_loss_tokens: int | None
    train_seconds: float
    tokens_per_second: float
    """For images, the number of their patches per second."""
    images_per_second: float | None = None
    """None where rows are texts."""
    peak_rss_bytes: int
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    """Bytes of the saved weights: of the adapter, or of the whole model."""
    kept_step: int | None = None
    """The step whose weights were saved; `validation_loss_after` belongs to it."""
    kept_why: str | None = None
    ended_early: str | None = None
    """The reason, if the run stopped before its last step."""
    validation_accuracy_before: float | None = None
    validation_accuracy_after: float | None = None
    """Share of validation rows whose class is predicted right, by the weights of `kept_step`. None without classes or
    validation rows."""

    temperature: float | None = None
    """What the logits of a classifier's head were divided by, as the saved weights have it."""
    baselines: dict[str, float] | None = None
    """The accuracy of simpler answers to the same rows: `largest_class`, and logistic regression on the frozen model's
    `vectors` and on `words` (TF-IDF, where scikit-learn is installed)."""
    budget: KeptBudget | None = None
    """None where no budget of forgetting was given."""
    accuracy_budget: KeptAccuracy | None = None
    """None where no budget of accuracy was given."""
    preference: PairResults | None = None
    """None where rows are no preference pairs, or without validation rows."""
    earlier_rounds: tuple[EarlierRound, ...] = ()
    """The runs that it goes on from, as far as their validation rows could be had; the latest first."""

    @property
    def comparison(self) -> str | None:
        """The accuracy of simpler answers to the validation rows, to stand beside the model's own."""
        names = {"largest_class": "the largest class alone", "vectors": "logistic regression on the model's vectors",
                 "words": "logistic regression on words (TF-IDF)"}  # fmt: skip
        known = {names[name]: value for name, value in (self.baselines or {}).items() if name in names}
        return ", ".join(f"{name} {value:.1%}" for name, value in known.items()) or None

    @property
    def speed(self) -> str:
        """The speed in the unit that a user counts in."""
        images = self.images_per_second
        return f"{self.tokens_per_second:,.0f} tokens/s" if images is None else f"{images:,.1f} images/s"


class Forecasted(Config):
    """The forecast made before the run, for comparison with its results."""

    peak_bytes: int
    memory: dict[str, int]
    """Parts of the peak memory."""
    device: str
    trainable_parameters: int
    adapter_bytes: int | None
    steps: int | None
    tokens_per_step: float
    operations: float | None = None
    """Floating-point operations of a step; None in runs of earlier versions."""
    seconds: float | None
    seconds_low: float | None
    seconds_high: float | None
    share_of_steps: float = 1.0
    """The share of the seconds that is forecast for steps; the rest is for validation. 1 in runs of earlier versions.
    """

    @property
    def train_seconds(self) -> float | None:
        """Seconds of the steps, as results have them."""
        return None if self.seconds is None else self.share_of_steps * self.seconds


class Resumed(Config):
    """A process that resumed the run after `step` steps."""

    step: int
    at: str = Field(default_factory=lambda: now())
    versions: dict[str, str] = Field(default_factory=lambda: versions())
    machine: JsonObject = Field(default_factory=lambda: machine())


class BackOff(Config):
    """Training diverged and went back (`training.on_divergence`)."""

    begun: int
    """The first step whose loss was far above its past or not a number."""
    to: int
    """The step whose checkpoint it went back to; 0 is the beginning."""
    learning_rate: float
    """Highest rate of the schedule from there on."""


class Products(Config):
    """How frozen weights of linear layers were multiplied by inputs in int8."""

    outliers: dict[str, tuple[int, ...]]
    """The layers that were multiplied in int8, each with the columns of its inputs that were multiplied by unpacked
    weights."""
    unpacked: tuple[str, ...]
    """Layers that were computed with unpacked weights, since too much would have been lost."""
    change: float
    """How far the outputs of the whole model were from those with unpacked weights before training, as a share."""


class Manifest(Config):
    format: Literal[1] = 1
    status: Literal["running", "finished", "failed", "interrupted"]
    started: str = Field(default_factory=lambda: now())
    ended: str | None = None
    command: list[str] = Field(default_factory=lambda: [Path(sys.argv[0]).name, *sys.argv[1:]])
    versions: dict[str, str] = Field(default_factory=lambda: versions())
    machine: JsonObject = Field(default_factory=lambda: machine())
    base_model: BaseModelFacts
    data: DataFacts
    learning_rate: float
    backend: BackendName = "eager"
    """The backend that computed losses; backends differ in rounding."""
    products: Products | None = None
    """None where weights were multiplied in the number format of the base."""
    forecast: Forecasted | None = None
    """None if the model could not be planned."""
    tuning: Tuning | None = None
    """How the learning rate was chosen, with `training.learning_rate` at `tune`."""
    results: Results | None = None
    result_sha256: dict[str, str] | None = None
    """The hash of every file of the result, of the data report and of the metrics log, by its path in the run's folder
    (runs/integrity.py). None in runs of earlier versions and in those that did not finish."""
    settings_sha256: str | None = None
    """The hash of config.json without the run's name, which may change. None in the same cases as `result_sha256`."""
    anchor: AnchorFacts | None = None
    """None where the run was not held to its base."""
    replay: ReplayFacts | None = None
    """None without replay."""
    lineage: tuple[Round, ...] = ()
    """The rounds that this run began with, the earliest first; none for a new adapter."""
    problem: str | None = None
    resumed: tuple[Resumed, ...] = ()
    back_offs: tuple[BackOff, ...] = ()
    """How often training diverged and went back, the earliest first."""
    warnings: tuple[str, ...] = ()
    """Warnings shown in the terminal: changes of results or memory use that were not requested."""

    @model_validator(mode="before")
    @classmethod
    def _without_its_hash(cls, values: Any) -> Any:
        """The file has a hash of all else, which runs/integrity.py compares."""
        return {key: one for key, one in values.items() if key != "sha256"} if isinstance(values, dict) else values


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {package: installed_version(package) for package in PACKAGES}


def machine() -> JsonObject:
    """With the number of processes where several train together. Whoever trains adds the number of threads."""
    several = {} if (own := launched()) is None else {"processes": own.size}
    return several | {
        "system": platform.platform(terse=True),
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def peak_rss() -> int:
    """Return the peak memory of this process in bytes. On Linux, VmHWM is used, because ru_maxrss includes the peak of
    the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
