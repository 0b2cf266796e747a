"""An objective says what a row of data means to a model and what its loss is. It is made of parts:

    facts        what it is made from: classes, how images are prepared, the loss of pairs
    words        what is said of it, as plain data
    score        how losses are judged
    rows         encodes rows for training                 (rows.py)
    writer       asks a model that writes text             (rows.py)
    loss         batches, predictions and the loss         (loss.py)
    classifier   predicts whole rows or their words        (classifier.py)
    head         a new head, and its exports               (classifier.py)

Training, validation and the data pipeline know these parts and no task. Objectives know models and data; they know
neither adapters nor the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.config.classification import PreferenceConfig
from rankwise.config.images import ImageProcessing
from rankwise.config.method import ASKED_SEPARATELY
from rankwise.objectives.classifier import ClassHead, Classifier
from rankwise.objectives.loss import Loss
from rankwise.objectives.rows import ObjectiveRows, Writer
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

WRITES_TEXT = {
    "onnx": "--format onnx is for classifiers, and {model} writes text. Export it as peft, merged, gguf or ollama; of "
    "a merged folder, onnxruntime-genai makes ONNX (docs/export.md)."
}
ANSWERS_UNMEASURED = (
    "The loss says how likely the reference answers are, not how good the model's own answers are. Measure these on "
    "your task (`rankwise evaluate`)."
)
GGUF = "{model} is a classifier, and GGUF files are written for language models alone. Use --format peft or merged."
NOT_OF_CLASSIFIERS = {
    "trained from a loaded model": "a classifier gets its new head when its model is loaded; give the model's name, "
    "not a loaded model.",
    "advised on from a loaded model": "a classifier gets its head when its model is loaded; give the model's name.",
    "generating": "{model} is a classifier, which writes no text. Ask it with: rankwise predict {name} --text {value}",
    "measured at strengths": "{model} is a classifier, which generates no text. Use rankwise evaluate to measure it.",
    "compared with its base": "the base has no trained head, so this classifier is evaluated alone",
    **dict.fromkeys(
        ("--task", "--text", "--blocks"),
        "{value} is for language models, and {model} is a classifier. Give labelled rows with --data.",
    ),
    "--score": "{model} is a classifier, which always has the same scores: accuracy, F1 and others. Leave --score out.",
    "served": "{model} is a classifier, which is served without language models: rankwise serve {name}.",
    "asked beside others": ASKED_SEPARATELY,
    "scaled": "--strength {value}: {model} is a classifier, whose new head has no base to scale its change from. Leave "
    "out --strength.",
    "weighted": "a classifier's new head has no base to scale its change from. Leave out --strength and --weights.",
    "judged by engines": "The rules of engines are known for language models. A classifier is loaded by PEFT and "
    "transformers.",
    "gguf-lora": GGUF,
    "gguf": GGUF,
    "mlx": "{model} is a classifier, and mlx-lm runs models that write text. Use --format peft or merged.",
    "ollama": "{model} is a classifier, and Ollama serves models that write text. Use merged.",
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """A default is what most objectives have."""

    use: str
    """What is done next with a run, as `rankwise` takes it."""
    pipeline_tag: str
    """What the hub calls what such a model does."""
    loading: str
    """For the model card: how PEFT loads an adapter."""
    base_elsewhere: str
    """For the model card: how an adapter is loaded whose base model has moved."""
    unmeasured: str = ANSWERS_UNMEASURED
    """For the model card: what the losses do not say of what is predicted."""
    cannot: Mapping[str, str]
    """By activity, or by format of an export, why no model of this objective is used for it: a sentence, in which
    `{model}` is what was trained and `{value}` what was asked for. Artifacts refuse by it."""
    shown_as: str = "text"
    """How the page asks it and shows what it answers."""
    route: str = "/v1/chat/completions"
    """Where a server is asked for what it answers."""
    names: str = "classes"
    """What it predicts, where it predicts names."""
    activity: str = "Classifying"
    """What it does to rows, where it predicts them."""
    learned_share: str = "{:.0%} of them in the loss"
    """What of the rows is learned; the field is its share of their tokens."""
    format_notes: Mapping[str, str]
    """What is learned of rows of a format, where it is not what the format is for."""


def head_words(
    targets: TargetFacts, *, loading: str, pipeline_tag: str, row: str = "text", shown_as: str = "classes",
    names: str = "classes", activity: str = "Classifying", advises: str = "", cannot: Mapping[str, str] | None = None,
) -> Words:  # fmt: skip
    """For a model with a new head. `advises` is what `advise` measures, where it does not measure this."""
    refusals = {**NOT_OF_CLASSIFIERS, **(cannot or {})}
    several = "classifiers with one label for a row, and these rows have several."
    if advises := advises or several * (targets.form == "several"):
        refusals["advised on"] = f"advise measures {advises}"
    if targets.pooling != "own":
        refusals["merged by files"] = (
            f"{{model}} has a head that reads the {targets.pooling} of all tokens (classification.pooling), which a "
            "merge file by file has no place for. Use rankwise export --format merged."
        )
    return Words(
        use="predict {run} --data FILE --out predictions.csv",
        pipeline_tag=pipeline_tag,
        loading=loading.replace("OUTPUTS", str(targets.outputs)),
        base_elsewhere="With rankwise, add `--base-model path/to/base` if it is elsewhere now.",
        unmeasured=f"It gives {targets.gives(row)}, however unlike its rows the {row} is. Measure it on labelled "
        f"{row}s of your task (`rankwise evaluate`).",
        cannot=refusals,
        shown_as=shown_as,
        route="/v1/classify",
        names=names,
        activity=activity,
        learned_share=one_target(targets),
        format_notes={},
    )


def one_target(targets: TargetFacts) -> str:
    return f"one target per {targets.unit.removesuffix('s')}"


Entry = TypeVar("Entry")
Family = Literal["answers", "pairs", "classes"]
"""What is compared: the tokens of answers, two answers, or classes and numbers."""


@dataclass(frozen=True)
class Facts:
    """What an objective is made from."""

    targets: TargetFacts | None = None
    """The classes or numbers that are predicted for rows; None where tokens are predicted."""
    processing: ImageProcessing | None = None
    """How images become what the model reads; None for a model of texts."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    prompts: bool = False
    """Whether the likelihood of orpo also covers the prompts."""
    seed: int = 0
    """Draws the weights of a new head."""


@dataclass(frozen=True)
class Score:
    """How losses and metrics of a training are judged. A default is what language models have."""

    best_by: str = "loss"
    """The metric that decides which validation was the best, where nobody names one."""
    far_above: float = 3.0
    """How many times what it was before a loss must be for the training to have diverged."""
    chooses_tokens: bool = True
    """Whether the loss is that of a choice of tokens."""
    baseline: str | None = None
    """What the accuracy before the first step is as a baseline, where the head was fitted on the frozen model."""

    @classmethod
    def of_classes(cls, targets: TargetFacts, baseline: str | None = None) -> Score:
        """By accuracy where rows have one class: the loss grows with each confident answer to a row with a wrong
        label. A head may overshoot for long."""
        return cls("accuracy" if targets.one_class else "loss", 10.0, chooses_tokens=False, baseline=baseline)


@dataclass(frozen=True)
class Objective:
    name: str
    family: Family
    facts: Facts
    kind: ModelKind
    """What is built from the model's folder."""
    words: Words
    rows: ObjectiveRows
    loss: Loss
    score: Score = Score()
    classifier: Classifier | None = None
    head: ClassHead | None = None
    """None where the model has its own, over the vocabulary."""
    writer: Writer | None = None

    @property
    def targets(self) -> TargetFacts | None:
        return None if self.classifier is None else self.classifier.targets

    def among(self, table: Mapping[str, Entry]) -> Entry:
        """The entry of its name, or else of its family."""
        return table[self.name if self.name in table else self.family]

    @property
    def predicting(self) -> Classifier:
        """The classifier, of an objective that has one."""
        assert self.classifier is not None, f"{self.name} predicts no rows"
        return self.classifier

    @property
    def text_writer(self) -> Writer:
        assert self.writer is not None, f"{self.name} writes no text"
        return self.writer

    @property
    def row_length(self) -> int | None:
        """Tokens of every row, where all have the same number, as images have patches."""
        return None if self.facts.processing is None else self.facts.processing.patches

    def row_form(self, form: str | None) -> str | None:
        """The format of rows to predict, where those that it was trained on had this one."""
        return (self.classifier and self.classifier.inputs.form) or form

    @property
    def head_size(self) -> int | None:
        """Outputs of a new head."""
        return None if self.head is None else self.head.targets.outputs

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Modules that are trained whole beside an adapter (PEFT's modules_to_save)."""
        return () if self.head is None else self.head.modules(model)

    def fit_head(self, model: LoadedModel, rows: Sequence[Tokens]) -> str | None:
        """Fit a new head before training; a sentence where it was done."""
        return None if self.head is None else self.head.fit(model, rows)
