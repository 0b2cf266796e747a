"""Stored evaluations: metrics with intervals, and each item's contribution to them; and comparisons of two runs.

An item's contribution is a short row of sums (hits; nats and tokens; n-gram counts). Added up over any selection of
items, these give the metric (evaluation/metrics.py). So two evaluations of the same items can later be compared item by
item, without the models. In a comparison, `b` is compared with `a`, so differences are b minus a. Scores as sentences,
for the messages of an evaluation, are at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from rankwise.config.base import Config, JsonObject
from rankwise.config.tasks import MEANINGS
from rankwise.errors import RunError, some
from rankwise.runs.directory import OF_RESULTS, RunDirectory
from rankwise.runs.manifest import now, versions
from rankwise.runs.measured import ClassDetails, Difference, FeatureForgetting, Measurement, SetDetails, Verdict
from rankwise.runs.own_files import read_json, with_hash
from rankwise.system.files import check_place, write_json

Sum = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A summand that is small enough for any sum to stay finite."""
Positions = Annotated[float, Field(ge=1, le=1e12)]
LARGEST = 500_000_000
OF_CLASSES = ("balanced_accuracy", "f1", "matthews", "calibration_error")
"""Metrics whose rows are no means: pairs of classes, and confidences."""
FOLDER, STRENGTH = OF_RESULTS
BEGINS = b'{\n  "format": 1,\n  "task": '
"""First bytes of every evaluation file."""


class Scores(Config):
    """One metric of one model: its value and each item's sums."""

    measured: Measurement
    sums: list[list[Sum]]


class FieldFigures(Config):
    """Figures of one field of JSON answers, over the `rows` whose reference has it; `extra` over the others."""

    field: str
    """The names on the way to it, with dots between them."""
    rows: int
    exact: Measurement | None = None
    """The share of answers with exactly the right value."""
    f1: Measurement | None = None
    """F1 of the members of lists, in any order."""
    near: Measurement | None = None
    """The share of answers whose number is within the tolerance."""
    missing: Measurement | None = None
    extra: Measurement | None = None


class ModelScores(Config):
    """Scores and answers of one model on the items of a task."""

    scores: dict[str, Scores]
    answers: list[str] | None = None
    """One per item, if answers were generated."""
    seconds: float
    classification: ClassDetails | None = None
    """Details of a classifier whose targets are classes."""
    sets: SetDetails | None = None
    """Details of a classifier that gives a row several labels or spans."""
    fields: list[FieldFigures] | None = None
    """Details of answers that are scored by `json`."""

    @property
    def metrics(self) -> dict[str, Measurement]:
        return {name: one.measured for name, one in self.scores.items()}


class OfBlocks(Config):
    """For each block of text: [sum of nats, number of positions]."""

    kl: list[tuple[Sum, Positions]]
    delta_nll: list[tuple[Sum, Positions]]
    numbers: list[int] | None = None
    """Numbers of the measured blocks, if not all were needed."""


class Forgetting(Config):
    """How far a tuned model moved from its base on text that it was not trained on, in nats per token.

    `kl` is KL(base || tuned), with its interval in `low` and `high`; `delta_nll` is the increase of the text's negative
    log-likelihood.
    """

    kl: float
    low: float
    high: float
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    agreement: float
    """Share of positions at which both models have the same most likely token."""
    text: str
    """Name of the text, and which part of it was used."""
    sha256: str
    """SHA-256 of the text's tokens; only results with the same one can be compared."""
    blocks: int
    """Number of measured blocks."""
    positions: int
    available: int | None = None
    """Number of blocks of the text, if not all were measured."""
    base: str | None = None
    """Fingerprint of the base; KLs are only comparable for the same base. Older files have none."""
    dtype: str | None = None
    """The dtype of both models."""
    sums: OfBlocks | None = None
    """Sums for comparing two models block by block. Older files have none."""
    created: str | None = None
    """Time of measurement, which may be earlier than that of the evaluation."""

    @property
    def measured_on(self) -> str:
        """Describe the text and how much of it was measured."""
        if self.available is None:
            return self.text
        return f"{self.text} ({self.blocks} of them were enough)"

    def summary(self) -> JsonObject:
        """Return the values without the sums of the blocks."""
        return self.model_dump(exclude={"sums"})


class Sample(Config):
    """One prompt with the target and the answers of both models."""

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
    """Hash of the items; evaluations are compared item by item only if it is equal."""
    data: str
    """Source of the items."""
    model: str
    """The run, or the model, that was evaluated."""
    against: str | None
    """Name of the model in `base`."""
    tuned: ModelScores
    base: ModelScores | None
    differences: dict[str, Difference]
    """Differences of `tuned` (b) from `base` (a) by metric; empty without a base."""
    forgetting: Forgetting | None
    """What a language model has forgotten."""
    feature_forgetting: FeatureForgetting | None = None
    """What a model of images has forgotten."""
    samples: list[Sample]
    """The first few items."""
    labels: dict[str, int] | None = None
    """If the choices are the answers that occur in the file: these answers with their counts."""
    created: str
    versions: dict[str, str]
    settings: JsonObject
    """Everything beside model and items that the numbers depend on."""
    sha256: str | None = None
    """SHA-256 of everything else in the file (runs/own_files.py). Older files have none."""
    _items: Callable[[], list[JsonObject]] | None = PrivateAttr(None)
    """What stands before each answer: the columns of its row, or its place and prompt. It is not stored."""

    def __repr__(self) -> str:
        base = "" if self.base is None else f"; {score_line('', str(self.against), self.base, self.differences)[2:]}"
        scored = score_line(self.task, self.model, self.tuned)
        return f"<evaluation on {self.n:,} items of {self.data}: {scored}{base}>"

    __str__ = __repr__

    def about(self, items: Callable[[], list[JsonObject]]) -> None:
        """Add what gives that which stands before the answer of each item."""
        self._items = items

    @property
    def answers(self) -> list[JsonObject]:
        """Every item with its columns or its prompt, its reference, the prediction, the base's, and the item's own
        scores, where that is a mean over items. RunError where the evaluation was read from a file, which does not hold
        prompts."""
        if self._items is None:
            raise RunError("an evaluation that was read from a file has no prompts. Evaluate again to see each answer.")
        tuned = {"prediction": self.tuned.answers} if self.tuned.answers is not None else {}
        base = {"base_prediction": self.base.answers} if self.base is not None and self.base.answers is not None else {}
        own = {name: [row[0] / row[1] for row in one.sums] for name, one in self.tuned.scores.items()
               if all(len(row) == 2 and row[1] > 0 for row in one.sums) and name not in OF_CLASSES}  # fmt: skip
        columns = tuned | base | own
        items = self._items()
        taken = {name for row in items for name in row}
        named = {f"rankwise_{name}" if name in taken else name: values for name, values in columns.items()}
        return [row | {name: values[at] for name, values in named.items()} for at, row in enumerate(items)]

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each metric: its value and interval, the base's, and the difference."""
        from pandas import DataFrame  # pyright: ignore[reportMissingImports]

        rows = {}
        for name, one in self.tuned.metrics.items():
            of_base = {} if self.base is None or name not in self.base.metrics else dict(self.base.metrics[name])
            other = self.differences.get(name)
            differs = {} if other is None else {
                "difference": other.difference, "difference_low": other.low, "difference_high": other.high,
                "p": other.p, "verdict": other.verdict,
            }  # fmt: skip
            rows[name] = dict(one) | {f"base_{key}": value for key, value in of_base.items()} | differs
        return DataFrame.from_dict(rows, orient="index")

    def _repr_html_(self) -> str:
        return self.to_frame().to_html()

    def summary(self) -> JsonObject:
        """What `rankwise evaluate --json` prints."""
        return {
            "task": self.task,
            "n": self.n,
            "left_out": self.left_out,
            "model": self.model,
            "against": self.against,
            "metrics": self.tuned.metrics,
            "base": self.base and self.base.metrics,
            "differences": {
                name: one.model_dump() | {"undecided": one.undecided} for name, one in self.differences.items()
            },
            "labels": self.labels,
            "classification": self.tuned.classification.summary() if self.tuned.classification else None,
            "sets": self.tuned.sets.summary() if self.tuned.sets else None,
            "fields": self.tuned.fields,
            "metric_meanings": {name: MEANINGS[name] for name in self.tuned.metrics if name in MEANINGS},
            "forgetting": self.forgetting.summary() if self.forgetting else None,
            "feature_forgetting": self.feature_forgetting,
            "seconds": round(self.tuned.seconds + (self.base.seconds if self.base else 0.0), 3),
        }


class StrengthPoint(Config):
    """The model at one adapter strength; `loss` is in nats per loss token of the task."""

    strength: float
    loss: Measurement
    kl: Measurement
    delta_nll: float


class StrengthCurve(Config):
    """Task loss and forgetting at several adapter strengths."""

    format: Literal[1] = 1
    task: str
    n: int
    text: str
    sha256: str
    """SHA-256 of the text's tokens; only curves with the same one can be compared."""
    points: list[StrengthPoint]
    recommended: float
    """The smallest measured strength that keeps 95 % of the largest gain up to strength 1. Without a significant gain
    it is 1, or 0 if the loss is significantly worse than the base's."""
    why: str | None = None
    """The reason, if no gain is significant."""
    own_rows: bool = False
    """Whether the rows are the run's own validation rows."""
    created: str


def evaluation_folder(run: RunDirectory) -> Path:
    """Where a run's evaluations are written. RunError where it is a link, since they would be written elsewhere."""
    if (folder := run.folder / FOLDER).is_symlink():
        raise RunError(f"{folder} is a link, and nothing is written through it. Put a folder in its place.")
    return folder


def evaluation_path(run: RunDirectory, task: str) -> Path:
    return evaluation_folder(run) / f"{task}.json"


def check_evaluation_place(path: Path) -> None:
    """Refuse an output path that is not writable or holds something other than an evaluation, before measuring."""
    check_place(path)
    if path.exists():
        with path.open("rb") as file:
            ours = file.read(len(BEGINS)) == BEGINS
        if not ours:
            raise RunError(f"{path} already exists and is not an evaluation. Choose another name with --out.")


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    check_place(path)
    write_json(path, with_hash(evaluation.model_dump(mode="json")))


def read_evaluation(path: Path) -> Evaluation:
    return read_json(path, Evaluation, LARGEST)


def evaluations_of(run: RunDirectory) -> dict[str, Evaluation]:
    """Read all evaluations of a run by task. A task's own file takes precedence over copies under other names."""
    paths = sorted((run.folder / FOLDER).glob("*.json")) if (run.folder / FOLDER).is_dir() else []
    found = [(path.stem, read_evaluation(path)) for path in paths]
    found.sort(key=lambda each: each[0] == each[1].task)
    return {one.task: one for _, one in found}


def write_strength(run: RunDirectory, curve: StrengthCurve) -> None:
    write_json(run.folder / STRENGTH, curve.model_dump(mode="json"))


def read_strength(run: RunDirectory) -> StrengthCurve | None:
    path = run.folder / STRENGTH
    return read_json(path, StrengthCurve) if path.exists() else None


def stamped() -> JsonObject:
    """Return time and versions, as fields of an Evaluation."""
    return {"created": now(), "versions": versions()}


class Differing(Config):
    """A recorded value that differs between two runs; None if a run does not have it."""

    key: str
    a: Any = None
    b: Any = None

    @property
    def one_sided(self) -> bool:
        """True for a setting that only one of the two methods has."""
        return self.a is None or self.b is None


class ComparedTask(Config):
    """Scores of both runs on one task. `differences` has the common metrics, unless `unpaired` says why items cannot be
    paired."""

    task: str
    n_a: int
    n_b: int
    a: dict[str, Measurement]
    b: dict[str, Measurement]
    differences: dict[str, Difference]
    unpaired: str | None = None
    set_apart: dict[str, str] = Field(default_factory=dict)
    """Reasons, by metric, why scores cannot be compared although the items are the same."""
    settings: list[Differing] = Field(default_factory=list)
    """Evaluation settings that differ."""


class ComparedForgetting(Config):
    """Forgetting of both runs. `verdict` is better if b moved less than a, judged by common blocks of text, or by
    whether the intervals are disjoint if a file has no blocks."""

    a: Forgetting | None
    b: Forgetting | None
    verdict: Verdict | None
    incomparable: str | None = None
    differences: dict[str, Difference] = Field(default_factory=dict)
    """Paired differences of `kl` and `delta_nll` over blocks."""


class Comparison(Config):
    format: Literal[1] = 1
    a: str
    b: str
    settings: list[Differing]
    data: list[Differing]
    base_model: list[Differing]
    cost: list[Differing]
    made_with: list[Differing]
    """Versions and machine."""
    tasks: list[ComparedTask]
    only_a: list[str]
    only_b: list[str]
    """Tasks that only one of the two was evaluated on."""
    forgetting: ComparedForgetting | None


def leaves(value: Any, path: str = "") -> JsonObject:
    """Flatten nested dictionaries to values by dotted names."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in leaves(part, f"{path}.{name}" if path else name).items()
    }


def differing(a: Any, b: Any, but: Collection[str] = ()) -> list[Differing]:
    """List the values in which two nested dictionaries differ, in the order of a and then b."""
    one, other = leaves(a), leaves(b)
    return [
        Differing(key=key, a=one.get(key), b=other.get(key))
        for key in one | other
        if key not in but and one.get(key) != other.get(key)
    ]


MOST_LABELS = 12


def score_line(task: str, who: str, side: ModelScores, differences: Mapping[str, Difference] | None = None) -> str:
    """Format the scores of one model; for a base, with the differences of the tuned model."""
    scores = [
        f"{metric} {one.shown()}" + (f", tuned: {verdict_text(differences[metric])}" if differences else "")
        for metric, one in side.metrics.items()
    ]
    return f"{task}, {who}: {'; '.join(scores)}"


def verdict_text(difference: Difference) -> str:
    verdict = difference.verdict if difference.verdict != "cannot tell" else f"cannot tell with n = {difference.n:,}"
    why = f"; {difference.undecided}" if difference.undecided else ""
    return (
        f"{verdict}, difference {difference.difference:+z.4g} ({difference.low:+z.4g} to {difference.high:+z.4g}){why}"
    )


def labels_text(labels: Mapping[str, int]) -> str:
    """Describe the choices if they are the answers that occur in the file."""
    listed = some((f"{label} ({count:,})" for label, count in labels.items()), MOST_LABELS)
    return (
        f"the task names no choices, so the model chooses among the {len(labels)} different answers in the file "
        f"(number of rows in brackets): {listed}"
    )
