"""An objective says what a row of data means to a model and what its loss is.

    rows -> encode -> batches -> predict -> loss

The loss is a sum over `Batch.count` predictions. The mean is taken once, over a whole optimizer step or a whole
validation, so how rows are cut into batches changes no result. Training, validation and the data pipeline know this
class and no task. Objectives know models and data; they know neither adapters nor the training loop.

The loss of whole rows, which text and image classifiers share.

classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
several    loss = sum over rows of the mean over classes of -log sigmoid(logit), or -log sigmoid(-logit) of a class
                  that the row does not have
numbers    loss = sum over rows of (output - target)^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load, load_tokenizer, load_unchecked
from rankwise.config.models import ModelConfig
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.preparing import Writing
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import EncoderOf
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import ANSWERS, Learned, TargetFacts


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


class Objective:
    """What all objectives have; a default is what most of them do."""

    name: ClassVar[str]
    encoder: ClassVar[EncoderOf]
    """Of rows of text."""
    pipeline_tag: ClassVar[str]
    """What the hub calls what such a model does."""
    loading_code: ClassVar[str]
    base_elsewhere: ClassVar[str]
    """For the model card: how an adapter is loaded whose base model has moved."""

    @property
    def targets(self) -> TargetFacts | None:
        """The classes or numbers that are predicted for whole rows; None where tokens are predicted."""
        return None

    @property
    def facts(self) -> Learned:
        """What is learned of rows, for the data report; nothing is counted yet."""
        return ANSWERS

    @property
    def loading(self) -> str:
        """For the model card: how PEFT loads an adapter."""
        return self.loading_code

    @property
    def unmeasured(self) -> str:
        """For the model card: what the losses do not say of what is predicted."""
        return (
            "The loss says how likely the reference answers are, not how good the model's own answers are. Measure "
            "these on your task (`rankwise evaluate`)."
        )

    @property
    def kind(self) -> ModelKind:
        """What transformers builds from the model's folder."""
        raise NotImplementedError

    @property
    def row_length(self) -> int | None:
        """Tokens of every row, where all have the same number, as images have patches."""
        return None

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        """The model by its auto class, and the tokenizer. `checked`: a model that lies in a run must be what training
        wrote there."""
        return (load if checked else load_unchecked)(spec, callback, self.kind)

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Modules that are trained whole beside an adapter (PEFT's modules_to_save)."""
        return ()

    def writing(self, model: LoadedModel) -> Writing:
        """How rows are encoded for this model, by its tokenizer and the template that it has now."""
        return TextWriting(
            model.tokenizer, model.template, model.source.name, model.context_length, self.encoder, learned=self.facts
        )

    def writing_alone(self, spec: ModelConfig, callback: Callback, *, guessed: bool) -> Writing:
        """The same where the model is not loaded. `guessed`: nobody named it."""
        tokenizer, name, context = load_tokenizer(spec, callback)
        return TextWriting(
            tokenizer, ChatTemplate.of_model(tokenizer), name, context, self.encoder, guessed=guessed,
            learned=self.facts,
        )  # fmt: skip

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Padded batches of at most so many tokens; a longer row is alone in its batch."""
        raise NotImplementedError

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits or values, one row for each target of the batch that is not ignored."""
        raise NotImplementedError

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of `batch.count` predictions."""
        raise NotImplementedError

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Rows that the model accepts, for measuring memory and time."""
        raise NotImplementedError


@dataclass(frozen=True)
class Classifier(Objective):
    """Predicts one class or one number for a whole row, or a class for each of its words."""

    predicted: TargetFacts
    row: ClassVar[str] = "text"
    base_elsewhere = "With rankwise, add `--base-model path/to/base` if it is elsewhere now."

    @property
    def targets(self) -> TargetFacts:
        return self.predicted

    @property
    def facts(self) -> TargetFacts:
        return self.predicted

    @property
    def loading(self) -> str:
        return self.loading_code.replace("OUTPUTS", str(self.targets.outputs))

    @property
    def unmeasured(self) -> str:
        return (
            f"It gives {self.predicted.gives(self.row)}, however unlike its rows the {self.row} is. Measure it on "
            f"labelled {self.row}s of your task (`rankwise evaluate`)."
        )


def classifier(objective: Objective | None) -> Classifier | None:
    """The objective itself where it predicts whole rows, and None where it predicts tokens."""
    return objective if isinstance(objective, Classifier) else None
