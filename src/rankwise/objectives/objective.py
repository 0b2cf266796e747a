"""An objective says what a row of data means to a model and what its loss is.

    rows -> encode -> batches -> predict -> loss

The loss is a sum over `Batch.count` predictions. The mean is taken once, over a whole optimizer step or a whole
validation, so how rows are cut into batches changes no result. Training, validation and the data pipeline know this
class and no task. Objectives know models and data; they know neither adapters nor the training loop.

The loss of whole rows, which text and image classifiers share, and how a model of texts reads its rows.

classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
several    loss = sum over rows of the mean over classes of -log sigmoid(logit), or -log sigmoid(-logit) of a class
                  that the row does not have
numbers    loss = sum over rows of (output - target)^2
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load, load_tokenizer, load_unchecked
from rankwise.config.data import DataConfig
from rankwise.config.experiment import RowSettings
from rankwise.config.method import ASKED_SEPARATELY
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError
from rankwise.objectives.predictions import ClassShares, Done, Longest, Numbers, Prediction, probability_column
from rankwise.rows.encoded.batches import Batch, portions_of
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome, RowEncoder, RowEncoding, Shown
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import ANSWERS, Learned, Pooling, TargetFacts

TOKENS_AT_ONCE = 4096
WRITES_TEXT = {
    "onnx": "--format onnx is for classifiers, and {model} writes text. Export it as peft, merged, gguf or ollama; of "
    "a merged folder, onnxruntime-genai makes ONNX (docs/export.md)."
}
Entry = TypeVar("Entry")
AsWritten = Callable[[Sequence[Tokens]], Mapping[str, Example]]


def head_settings(targets: TargetFacts) -> dict[str, Any]:
    """Settings of a config.json for a head with these outputs."""
    classes = dict(enumerate(targets.classes))
    names = {"id2label": classes, "label2id": {name: at for at, name in classes.items()}} if classes else {}
    problem = {} if targets.form == "tags" else {"problem_type": _problem(targets)}
    return {"num_labels": targets.outputs, **problem, **names}


def _problem(targets: TargetFacts) -> str:
    if targets.form == "several":
        return "multi_label_classification"
    return "single_label_classification" if targets.classes else "regression"


def outputs_in(logits: Tensor, targets: TargetFacts) -> Tensor:
    """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact if targets.classes else exact[:, 0]


def weight_of(values: Tensor, targets: TargetFacts) -> float:
    """The sum of the weights of rows with these targets."""
    return float(torch.tensor(targets.weights)[values].sum()) if targets.weights else len(values)


def values_of(rows: Sequence[Tokens], targets: TargetFacts) -> Tensor:
    """(B,) classes or numbers, or (B, C) where a row has several classes. Rows that are only read have zeros."""
    nothing = [0.0] * targets.outputs if targets.form == "several" else 0.0
    values = torch.tensor([nothing if row.target is None else row.target for row in rows], dtype=torch.float64)
    return values.long() if targets.classes and targets.form == "one" else values.float()


def target_loss(outputs: Tensor, values: Tensor, targets: TargetFacts) -> Tensor:
    """`values` are what the outputs should be: (B,) classes or numbers, or (B, C) where a row has several classes."""
    if targets.form == "several":
        return F.binary_cross_entropy_with_logits(outputs, values, reduction="sum") / targets.outputs
    if not targets.classes:
        return F.mse_loss(outputs, values, reduction="sum")
    weights = torch.tensor(targets.weights).to(outputs) if targets.weights else None
    return F.cross_entropy(outputs, values, weights, reduction="sum")


class Objective(ABC):
    """What all objectives have; a default is what most of them do."""

    name: ClassVar[str]
    family = "answers"
    """What its models give: answers, answers learned from pairs, or classes (numbers among them)."""
    use: ClassVar[str]
    """What is done next with a run, as `rankwise` takes it."""
    shown_as = "text"
    """How the page asks it and shows what it answers."""
    route = "/v1/chat/completions"
    """Where a server is asked for what it answers."""
    names = "classes"
    """What it predicts, where it predicts names."""
    pipeline_tag: ClassVar[str]
    """What the hub calls what such a model does."""
    loading_code: ClassVar[str]
    base_elsewhere: ClassVar[str]
    """For the model card: how an adapter is loaded whose base model has moved."""

    format_notes: ClassVar[Mapping[str, str]] = {}
    """What is learned of rows of a format, where it is not what the format is for."""
    far_above = 3.0
    """How many times what it was before a loss must be for the training to have diverged."""
    falling = 0.95
    """More steps are suggested where the last validation loss is below this share of the best one before it."""

    @property
    def targets(self) -> TargetFacts | None:
        """The classes or numbers that are predicted for whole rows; None where tokens are predicted."""
        return None

    @property
    def facts(self) -> Learned:
        """What is learned of rows, for the data report; nothing is counted yet."""
        return self.targets or ANSWERS

    @property
    def loading(self) -> str:
        """For the model card: how PEFT loads an adapter."""
        return self.loading_code.replace("OUTPUTS", str(self.head_size))

    @property
    def unmeasured(self) -> str:
        """For the model card: what the losses do not say of what is predicted."""
        return (
            "The loss says how likely the reference answers are, not how good the model's own answers are. Measure "
            "these on your task (`rankwise evaluate`)."
        )

    @property
    def best_by(self) -> str:
        """The metric that decides which validation was the best, where nobody names one."""
        return "loss"

    def among(self, table: Mapping[str, Entry]) -> Entry:
        """The entry of its name, or else of its family."""
        return table[self.name if self.name in table else self.family]

    def choices(self, model: LoadedModel) -> int | None:
        """Tokens that the loss is a choice of, where it is that of tokens."""
        return model.vocabulary

    def learned_share(self, loss_tokens: int, tokens: int) -> str:
        """What of the rows is learned, for a message."""
        return f"{loss_tokens / tokens:.0%} of them in the loss"

    def fit_head(self, model: LoadedModel, rows: Sequence[Tokens]) -> str | None:
        """Fit a new head before training; a sentence where it was done."""
        return None

    def fitted_baseline(self, accuracy: float) -> dict[str, float]:
        """A head that was fitted on the frozen model is a baseline itself. `accuracy` is that before the first step."""
        return {}

    @classmethod
    def of(cls, rows: RowSettings, callback: Callback, begun: Pooling | None) -> Self:
        """For a training whose objective is decided. `begun` is what the head of the run that goes on reads, or of the
        adapter to begin with."""
        return cls()

    @classmethod
    def of_report(cls, data_report: DataReport) -> Self:
        """What a run or an adapter was trained for, by the report that lies beside it."""
        return cls()

    @property
    def head_size(self) -> int | None:
        """Outputs of a new head; None where the model has its own, over the vocabulary."""
        return None

    @property
    @abstractmethod
    def kind(self) -> ModelKind:
        """What transformers builds from the model's folder."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model before training."""
        return False

    @property
    def cannot(self) -> Mapping[str, str]:
        """By activity, or by format of an export, why no model of this objective is used for it: a sentence, in which
        `{model}` is what was trained and `{value}` what was asked for. Artifacts refuse by it."""
        return WRITES_TEXT

    @property
    def row_length(self) -> int | None:
        """Tokens of every row, where all have the same number, as images have patches."""
        return None

    def load(self, config: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        """The model by its auto class, and the tokenizer. `checked`: a model that lies in a run must be what training
        wrote there."""
        return (load if checked else load_unchecked)(config, callback, self.kind)

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Modules that are trained whole beside an adapter (PEFT's modules_to_save)."""
        return ()

    def row_form(self, form: str | None) -> str | None:
        """The format of rows to predict, where those that it was trained on had this one."""
        return form

    def columns(self, column: str) -> list[str]:
        """The columns of a file of rows beside this one of its predictions."""
        return []

    def check_answering(self, changed: Sequence[str]) -> None:  # noqa: B027  most take all
        """ConfigError where settings of answers were changed that have no effect."""

    def encoder(self, template: ChatTemplate, tokenizer: HubTokenizer, config: DataConfig, limit: int) -> RowEncoder:
        """The encoder that turns rows of texts into tokens."""
        return Encoder(template, tokenizer, config, limit)

    def row_encoding(self, model: LoadedModel) -> RowEncoding:
        """How rows are encoded for this model, by its tokenizer and the template that it has now."""
        return TextWriting(
            model.tokenizer, model.template, model.source.name, model.context_length,
            self.encoder, learned=self.facts,
        )  # fmt: skip

    def writing_alone(self, config: ModelConfig, callback: Callback, *, guessed: bool) -> RowEncoding:
        """How rows are encoded where the model is not loaded. `guessed`: the user did not name the model."""
        tokenizer, name, context = load_tokenizer(config, callback)
        return TextWriting(
            tokenizer, ChatTemplate.of_model(tokenizer), name, context,
            self.encoder, guessed=guessed, learned=self.facts,
        )  # fmt: skip

    def preview(self, outcome: Outcome, row_encoding: TextWriting, encoder: Any) -> list[Shown]:
        """An encoded row of texts, as training sees it. `encoder` is that of the writing."""
        where, rows = outcome.example.where, outcome.sequences
        if not rows:
            why = f"longer than {encoder.limit:,} tokens" if outcome.too_long else "no word is left after truncation"
            return [Shown(where, self.segments(outcome.example, None, row_encoding), outcome.lengths[0], 0, why)]
        return [
            Shown(where, self.segments(outcome.example, row, row_encoding), len(row.ids), row.loss_count)
            for row in rows
        ]

    def segments(self, example: Example, row: Tokens | None, row_encoding: TextWriting) -> list[tuple[str, bool]]:
        """The parts of a row, or of one that is left out, each with whether it is learned."""
        text = example.prompt_text if row is None else row_encoding.tokenizer.decode([int(token) for token in row.ids])
        return [(text, False), (f" -> {example.messages[1].content}", True)]

    def stays(self, name: str | None) -> bool:
        """Whether a tensor of the base's files stays in a merged model, which knows it by this name or by none."""
        return True

    def merged_config(self, base: dict[str, Any], module: nn.Module, tokenizer: HubTokenizer | None) -> dict[str, Any]:
        """A merged model's config.json, from that of its base."""
        return base

    def save_ends(self, base: Path, template: ChatTemplate, folder: Path) -> None:  # noqa: B027  most write none
        """Write beside a model how its answers end, where it writes any."""

    @abstractmethod
    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Padded batches of at most so many tokens; a longer row is alone in its batch."""
        ...

    @abstractmethod
    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits or values, one row for each target of the batch that is not ignored."""
        ...

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of `batch.count` predictions."""
        ...

    def as_read_elsewhere(self, module: nn.Module, dtype: torch.dtype) -> Objective:
        """What an export of this module is read as by other software; the module is made ready for it."""
        return self

    @property
    def recorded(self) -> dict[str, Any]:
        """What it changes in the data report beside an export."""
        return {}

    def sample_logits(self, model: LoadedModel, text: str) -> Tensor:
        """The logits of a text, by which two copies of a model are compared."""
        ids = torch.tensor([model.tokenizer.encode(text)], device=model.precision.device)
        return model.module(input_ids=ids).logits

    @abstractmethod
    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Rows that the model accepts, for measuring memory and time."""
        ...

    def rows_like(
        self, lengths: Sequence[int], share: float, module: nn.Module, tokens: int, turn: int, turns: int
    ) -> list[Tokens]:
        """Random rows of about so many tokens, with one of `lengths` and a `share` of tokens that is predicted, and
        others at each turn. All have the same length, so that none has padding: what the plan counts are padded
        rows."""
        lengths = sorted(lengths)
        length = lengths[(2 * turn + 1) * len(lengths) // (2 * turns)]
        drawn = [length] * max(1, round(tokens / length))
        return self.random_rows(module, drawn, torch.Generator().manual_seed(turn))


@dataclass(frozen=True)
class Classifier(Objective):
    """Predicts one class or one number for a whole row, or a class for each of its words."""

    family = "classes"
    predicted: TargetFacts
    row = "text"
    largest_request = 2**20
    """Bytes of a request to classify rows."""
    activity = "Classifying"
    use = "predict {run} --data FILE --out predictions.csv"
    shown_as = "classes"
    far_above = 10.0  # a head may overshoot for long

    @classmethod
    def of_report(cls, data_report: DataReport) -> Self:
        assert data_report.targets is not None, "the report is of a classifier"
        return cls(data_report.targets)

    @property
    def targets(self) -> TargetFacts:
        return self.predicted

    @property
    def recorded(self) -> dict[str, Any]:
        return {"targets": self.predicted.model_dump(mode="json")}

    @property
    def unmeasured(self) -> str:
        return (
            f"It gives {self.predicted.gives(self.row)}, however unlike its rows the {self.row} is. Measure it on "
            f"labelled {self.row}s of your task (`rankwise evaluate`)."
        )

    def columns(self, column: str) -> list[str]:
        shares = [probability_column(name) for name in self.targets.classes]
        if column in shares:
            raise ConfigError([
                f'the column "{column}" is that of a class\'s probability. Choose another with --column.'
            ])  # fmt: skip
        return shares

    def check_answering(self, changed: Sequence[str]) -> None:
        if changed:
            raise ConfigError([
                f"the setting {changed[0]} has no effect, because this run is a classifier. Leave it out."
            ])  # fmt: skip

    @abstractmethod
    def example_of(self, item: Any, where: str) -> Example:
        """A row that is only to be predicted, of a value of JSON or the bytes of an image; DataError where it is not
        what the model reads."""
        ...

    def requested(self, item: Any, where: str, read: Callable[[dict[str, Any]], Example]) -> Example:
        """The row of a request; an object has its columns, which `read` reads as in a file."""
        return read(item) if isinstance(item, dict) else self.example_of(item, where)

    def texts(self, example: Example) -> Sequence[str]:
        """Each text of a row that has some."""
        return example.messages[0].content, example.messages[0].context

    @abstractmethod
    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        """Rows that are only to be predicted, each with one sequence or a problem."""
        ...

    def prediction(self, outcome: Outcome, outputs: Numbers) -> Prediction:
        return ClassShares.of(self.targets, outputs)

    def predictions(
        self, model: LoadedModel, examples: Sequence[Example], longest: Longest, done: Done | None = None
    ) -> tuple[dict[int, Prediction], dict[int, str]]:
        """What the model says of rows, and what is wrong with the others, both by position; `done` gets how many there
        are so far."""
        outcomes = dict(enumerate(self.encoded(model, examples, longest)))
        problems = {at: one.problem for at, one in outcomes.items() if one.problem is not None}
        fitting = {at: one for at, one in outcomes.items() if at not in problems}
        return dict(zip(fitting, self.predictions_of(model, [*fitting.values()], done), strict=True)), problems

    def predictions_of(
        self, model: LoadedModel, encoded: Sequence[Outcome], done: Done | None = None
    ) -> list[Prediction]:
        """What the model says of encoded rows without problems."""
        outputs = self.outputs_for(model.module, [one.sequences[0] for one in encoded], done)
        return [self.prediction(one, part) for one, part in zip(encoded, outputs, strict=True)]

    def outputs_for(self, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None) -> Any:
        """Probabilities (N, C) of the classes, or numbers (N, 1)."""
        found = np.zeros((len(rows), self.targets.outputs))
        for places, _, outputs in self.in_batches(module, rows, done):
            found[places] = self._probabilities(outputs)
        return found

    def _probabilities(self, outputs: Tensor) -> Numbers:
        if self.targets.form == "several":
            return outputs.sigmoid().cpu().numpy()
        values = outputs.softmax(-1) if self.targets.classes else outputs[:, None]
        return values.cpu().numpy()

    def in_batches(
        self, module: nn.Module, rows: Sequence[Tokens], done: Done | None
    ) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Places of rows with their batch and the model's outputs, the longest rows first."""
        device, finished = next(module.parameters()).device, 0
        order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids), reverse=True)
        for batch in self.batches([rows[at] for at in order], TOKENS_AT_ONCE):
            count = len(batch.targets)
            with torch.no_grad():
                outputs = self.predict(module, batch.to(device)).double()
            yield order[finished : finished + count], batch, outputs
            finished += count
            if done is not None:
                done(finished)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self.batch_of(part) for part in portions_of(rows, max_tokens, width=lambda row: len(row.ids))]

    @abstractmethod
    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        """All of them, in their order."""
        ...

    def learned(self, values: Tensor, mask: Tensor) -> Tensor:
        """The values that the loss falls on, here all of them. `mask` is True where a value is a target."""
        return values

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        targets = self.learned(batch.targets, batch.loss_mask)
        return target_loss(self.predict(module, batch), targets, self.targets)

    @property
    def best_by(self) -> str:
        """The accuracy, where rows have one class: the loss grows with each confident answer to a row with a wrong
        label."""
        return "accuracy" if self.predicted.one_class else "loss"

    def choices(self, model: LoadedModel) -> int | None:
        return None

    def learned_share(self, loss_tokens: int, tokens: int) -> str:
        return f"one target per {self.predicted.unit.removesuffix('s')}"


def classifier(objective: Objective | None) -> Classifier | None:
    """The objective itself where it predicts whole rows, and None where it predicts tokens."""
    return objective if isinstance(objective, Classifier) else None


GGUF = "{model} is a classifier, and GGUF files are written for language models alone. Use --format peft or merged."
NUMBER_FORMAT = "dtype", "torch_dtype"
"""What a config.json calls it."""
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


@dataclass(frozen=True)
class Graph:
    """A classifier as a graph of operations, for programs that have no code of the model."""

    module: nn.Module
    logits: Callable[..., Tensor]
    """Computes them with the module."""
    inputs: Mapping[str, Tensor]
    """What it is given, in this order: any rows, by the names that the graph gives its inputs."""
    axes: Mapping[int, str]
    """The axes of all inputs that may have any length."""
    family: str
    """The model_type of transformers by which transformers.js chooses the code that runs such a graph."""


@dataclass(frozen=True)
class WithHead(Classifier):
    """Predicts by a new head, which is trained whole beside an adapter."""

    route = "/v1/classify"
    base_elsewhere = "With rankwise, add `--base-model path/to/base` if it is elsewhere now."
    advises: ClassVar[str] = ""
    """What `advise` measures, where it does not measure this."""
    engine_texts: ClassVar[Sequence[str]] = ()
    """What other software is asked where there are no rows."""
    tolerances: ClassVar[Mapping[str, float]] = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
    """The largest difference of an output that other software may have, by number format."""

    @abstractmethod
    def shown(self, model: LoadedModel, rows: Sequence[Tokens], count: int, as_written: AsWritten) -> list[Example]:
        """So many of the rows, as other software can be given them. `as_written` reads rows again from their files."""
        ...

    @abstractmethod
    def question(self, outcome: Outcome) -> dict[str, Any]:
        """An encoded row as other software is given it."""
        ...

    @abstractmethod
    def graph(self, model: LoadedModel, limit: int) -> Graph:
        """The model from what a tokenizer or an image decoder gives. Texts have at most `limit` tokens."""
        ...

    @property
    def head_size(self) -> int:
        return self.predicted.outputs

    def stays(self, name: str | None) -> bool:
        """A new head takes the place of the base's."""
        return name is not None

    def merged_config(self, base: dict[str, Any], module: nn.Module, tokenizer: HubTokenizer | None) -> dict[str, Any]:
        """The settings for a merged model, which are those that the model with its new head was built with."""
        config: Any = module.config
        if tokenizer is not None and config.get_text_config().pad_token_id is None:
            config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_id
        config.architectures = [type(module).__name__]
        own = {key: base[key] for key in NUMBER_FORMAT if key in base}
        return {key: value for key, value in config.to_dict().items() if key not in NUMBER_FORMAT} | own

    @property
    def cannot(self) -> Mapping[str, str]:
        cannot = NOT_OF_CLASSIFIERS
        several = "classifiers with one label for a row, and these rows have several."
        if advises := self.advises or several * (self.targets.form == "several"):
            cannot = cannot | {"advised on": f"advise measures {advises}"}
        if (pooling := self.targets.pooling) == "own":
            return cannot
        pooled = (
            f"{{model}} has a head that reads the {pooling} of all tokens (classification.pooling), which a merge file "
            "by file has no place for. Use rankwise export --format merged."
        )
        return cannot | {"merged by files": pooled}
