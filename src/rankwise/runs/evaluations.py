"""What an evaluation leaves behind: numbers with intervals, and each item's own share of them.

An item's share is a short row of sums (hits; nats and tokens; n-gram counts) that add up, over any choice of items, to
the metric itself (evaluation/metrics.py). So two evaluations of the same items can be compared, item against item,
long after the models are gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rankwise.config.base import Config
from rankwise.config.tasks import MEANINGS
from rankwise.errors import RunError
from rankwise.runs.directory import RunDirectory, read_json
from rankwise.runs.manifest import now, versions
from rankwise.system.files import check_place, write_json

Verdict = Literal["better", "worse", "cannot tell"]
Sum = Annotated[float, Field(ge=-1e100, le=1e100)]
"""Adds up, over any number of items, to a number."""
LEVEL = 0.05
"""Of the paired test, below which a difference is a verdict; intervals are of 1 - LEVEL."""
Positions = Annotated[float, Field(ge=1, le=1e12)]
LARGEST = 500_000_000
FOLDER, STRENGTH = "evaluations", "strength.json"
BEGINS = b'{\n  "format": 1,\n  "task": '
"""What a file of an evaluation begins with."""


class Measured(Config):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(Config):
    """b minus a over the same items, with its 95 % interval; `p` is that of a paired test."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    verdict: Verdict
    """Of b: `better` and `worse` heed whether more of the metric is better."""

    @property
    def undecided(self) -> str | None:
        """Why nothing can be told, where the interval alone or the test alone would tell it."""
        if self.verdict != "cannot tell" or (self.low <= 0 <= self.high and self.p >= LEVEL):
            return None
        if self.low <= 0 <= self.high:
            return f"the paired test has p = {self.p:.2g}, but the interval includes 0; a verdict needs both"
        return f"the interval excludes 0, but the paired test has p = {self.p:.2g}; a verdict needs p below {LEVEL:g}"


class Scores(Config):
    """One metric of one side: what it is, and each item's sums."""

    measured: Measured
    sums: list[list[Sum]]


class ModelScores(Config):
    """What one model did with the items of a task."""

    scores: dict[str, Scores]
    answers: list[str] | None = None
    """One per item, where texts were generated."""
    seconds: float

    @property
    def metrics(self) -> dict[str, Measured]:
        return {name: one.measured for name, one in self.scores.items()}


class OfBlocks(Config):
    """Sums over the positions of each block, with how many these are: [nats, positions]."""

    kl: list[tuple[Sum, Positions]]
    delta_nll: list[tuple[Sum, Positions]]
    numbers: list[int] | None = None
    """Which blocks of the text they are, where not all of them were needed."""


class Forgetting(Config):
    """What a tuned model does to text that is not among its files, against its base: both in nats per token.

    `kl` is KL(base || tuned), with its interval in `low` and `high`; `delta_nll` is by how much the text's own tokens
    became less likely.
    """

    kl: float
    low: float
    high: float
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    agreement: float
    """Share of positions at which both find the same token likeliest."""
    text: str
    """Its name, and what of it was read."""
    sha256: str
    """Of the text's tokens: only equal ones can be compared."""
    blocks: int
    """Those that were measured."""
    positions: int
    available: int | None = None
    """Blocks of the text, where not all of them were needed."""
    base: str | None = None
    """The fingerprint of the base; a KL is compared only with one from the same. Older files have none."""
    dtype: str | None = None
    """In which both were held."""
    sums: OfBlocks | None = None
    """By which two are compared block by block. Older files have none."""
    created: str | None = None
    """When it was measured, which may be earlier than the evaluation that it stands in."""

    @property
    def measured_on(self) -> str:
        """The text, and how much of it."""
        if self.available is None:
            return self.text
        return f"{self.text} ({self.blocks} of them were enough)"

    def summary(self) -> dict[str, Any]:
        """As it is told, without the blocks' own."""
        return self.model_dump(exclude={"sums"})


class Sample(Config):
    """One prompt with what was wanted and what each side answered."""

    prompt: str
    target: str | None = None
    base: str | None = None
    tuned: str | None = None


class Evaluation(Config):
    format: Literal[1] = 1
    task: str
    n: int
    left_out: int = 0
    """Items that the model's context does not hold."""
    items_sha256: str
    """Of the items as they were asked: only equal ones are compared item against item."""
    data: str
    """Where the items come from."""
    model: str
    """The run, or the model, that was evaluated."""
    against: str | None
    """What stands in `base`."""
    tuned: ModelScores
    base: ModelScores | None
    differences: dict[str, Difference]
    """Of `tuned` (b) to `base` (a), by metric; none without a base."""
    forgetting: Forgetting | None
    samples: list[Sample]
    """The first few items."""
    labels: dict[str, int] | None = None
    """The choices with how many rows have each, where the task names none and the answers that occur are taken."""
    created: str
    versions: dict[str, str]
    settings: dict[str, Any]
    """All that the numbers depend on beside model and items."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise evaluate --json` prints."""
        return {
            "task": self.task,
            "n": self.n,
            "left_out": self.left_out,
            "model": self.model,
            "against": self.against,
            "metrics": {name: one.model_dump() for name, one in self.tuned.metrics.items()},
            "base": {name: one.model_dump() for name, one in self.base.metrics.items()} if self.base else None,
            "differences": {
                name: one.model_dump() | {"undecided": one.undecided} for name, one in self.differences.items()
            },
            "labels": self.labels,
            "metric_meanings": {name: MEANINGS[name] for name in self.tuned.metrics if name in MEANINGS},
            "forgetting": self.forgetting.summary() if self.forgetting else None,
            "seconds": round(self.tuned.seconds + (self.base.seconds if self.base else 0.0), 3),
        }


class StrengthPoint(Config):
    """The adapter at `strength` times its scale. `loss` is that of the task, in nats per supervised token."""

    strength: float
    loss: Measured
    kl: Measured
    delta_nll: float


class StrengthCurve(Config):
    """Gain against forgetting as the adapter is turned up from nothing."""

    format: Literal[1] = 1
    task: str
    n: int
    text: str
    sha256: str
    """Of the text's tokens: only equal ones can be compared."""
    points: list[StrengthPoint]
    recommended: float
    """The smallest of these strengths that keeps 95 % of the largest gain of any up to 1; where no gain can be told
    from none 1, or 0 if the loss is surely worse than the base's."""
    why: str | None = None
    """Why it is 1 or 0, where no gain could be told from none."""
    own_rows: bool = False
    """Whether the rows of the task are those that the run measured on itself."""
    created: str


def evaluation_path(run: RunDirectory, task: str) -> Path:
    return run.folder / FOLDER / f"{task}.json"


def check_evaluation_place(path: Path) -> None:
    """Of a user's choice, before anything is measured: an earlier evaluation is written anew, anything else stays."""
    check_place(path)
    if path.exists():
        with path.open("rb") as file:
            ours = file.read(len(BEGINS)) == BEGINS
        if not ours:
            raise RunError(f"{path} is there already and is no evaluation. Choose another name with --out.")


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    check_place(path)
    write_json(path, evaluation.model_dump(mode="json"))


def read_evaluation(path: Path) -> Evaluation:
    return read_json(path, Evaluation, LARGEST)


def evaluations_of(run: RunDirectory) -> dict[str, Evaluation]:
    """Those of a run, by task. A copy under another name does not take the place of a task's own file."""
    paths = sorted((run.folder / FOLDER).glob("*.json")) if (run.folder / FOLDER).is_dir() else []
    found = [(path.stem, read_evaluation(path)) for path in paths]
    found.sort(key=lambda each: each[0] == each[1].task)
    return {one.task: one for _, one in found}


def write_strength(run: RunDirectory, curve: StrengthCurve) -> None:
    write_json(run.folder / STRENGTH, curve.model_dump(mode="json"))


def read_strength(run: RunDirectory) -> StrengthCurve | None:
    path = run.folder / STRENGTH
    return read_json(path, StrengthCurve) if path.exists() else None


def stamped() -> dict[str, Any]:
    """When and with what; for whoever makes an Evaluation."""
    return {"created": now(), "versions": versions()}
