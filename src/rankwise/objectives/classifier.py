"""What predicts whole rows, or each of their words: from a row of a request or a file to what the model says of it.

Most have a new head, which is trained whole beside an adapter, and which other software is given with the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.timm_models import head_modules
from rankwise.errors import ConfigError
from rankwise.objectives.loss import ClassLoss
from rankwise.objectives.predictions import ClassShares, Done, Longest, Numbers, Prediction, probability_column
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.row_facts import TargetFacts

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class RowInputs(ABC):
    """Rows that are only to be predicted, and the columns of their predictions."""

    targets: TargetFacts
    largest_request: ClassVar[int] = 2**20
    """Bytes of a request to classify rows."""
    form: ClassVar[str | None] = None
    """The format of rows to predict, where it need not be that of the rows it was trained on."""

    @abstractmethod
    def example_of(self, item: Any, where: str) -> Example:
        """A row of a value of JSON or the bytes of an image; DataError where it is not what the model reads."""
        ...

    def requested(self, item: Any, where: str, read: Callable[[dict[str, Any]], Example]) -> Example:
        """The row of a request; an object has its columns, which `read` reads as in a file."""
        return read(item) if isinstance(item, dict) else self.example_of(item, where)

    def texts(self, example: Example) -> Sequence[str]:
        """Each text of a row that has some."""
        return example.messages[0].content, example.messages[0].context

    @abstractmethod
    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        """Each with one sequence or a problem."""
        ...

    def prediction(self, outcome: Outcome, outputs: Numbers) -> Prediction:
        return ClassShares.of(self.targets, outputs)

    def columns(self, column: str) -> list[str]:
        """The columns of a file of rows beside this one of its predictions."""
        shares = [probability_column(name) for name in self.targets.classes]
        if column in shares:
            raise ConfigError([
                f'the column "{column}" is that of a class\'s probability. Choose another with --column.'
            ])  # fmt: skip
        return shares


@dataclass(frozen=True)
class Classifier:
    inputs: RowInputs
    loss: ClassLoss

    @property
    def targets(self) -> TargetFacts:
        return self.loss.targets

    def predictions(
        self, model: LoadedModel, examples: Sequence[Example], longest: Longest, done: Done | None = None
    ) -> tuple[dict[int, Prediction], dict[int, str]]:
        """What the model says of rows, and what is wrong with the others, both by position; `done` gets how many there
        are so far."""
        outcomes = dict(enumerate(self.inputs.encoded(model, examples, longest)))
        problems = {at: one.problem for at, one in outcomes.items() if one.problem is not None}
        fitting = {at: one for at, one in outcomes.items() if at not in problems}
        return dict(zip(fitting, self.predictions_of(model, [*fitting.values()], done), strict=True)), problems

    def predictions_of(
        self, model: LoadedModel, encoded: Sequence[Outcome], done: Done | None = None
    ) -> list[Prediction]:
        """What the model says of encoded rows without problems."""
        outputs = self.outputs_for(model.module, [one.sequences[0] for one in encoded], done)
        return [self.inputs.prediction(one, part) for one, part in zip(encoded, outputs, strict=True)]

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
        for batch in self.loss.batches([rows[at] for at in order], TOKENS_AT_ONCE):
            count = len(batch.targets)
            with torch.no_grad():
                outputs = self.loss.predict(module, batch.to(device)).double()
            yield order[finished : finished + count], batch, outputs
            finished += count
            if done is not None:
                done(finished)


NUMBER_FORMAT = "dtype", "torch_dtype"
"""What a config.json calls it."""
TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""The largest difference of an output that other software may have, by number format."""
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
class ClassHead(ABC):
    targets: TargetFacts
    images: ClassVar[bool] = False
    tolerances: ClassVar[Mapping[str, float]] = TOLERANCES

    def modules(self, model: LoadedModel) -> tuple[str, ...]:
        """Every module beside the pretrained body, and those inside it whose weights the folder lacks."""
        return tuple(dict.fromkeys([*head_modules(model.module, images=self.images), *model.new_modules]))

    def fit(self, model: LoadedModel, rows: Sequence[Tokens]) -> str | None:
        """Fit it before training; a sentence where it was done."""
        return None

    def merged_config(self, base: dict[str, Any], module: nn.Module, tokenizer: HubTokenizer | None) -> dict[str, Any]:
        """A merged model's config.json, from that of its base and the settings that the model with its new head was
        built with."""
        config: Any = module.config
        if tokenizer is not None and config.get_text_config().pad_token_id is None:
            config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_id
        config.architectures = [type(module).__name__]
        own = {key: base[key] for key in NUMBER_FORMAT if key in base}
        return {key: value for key, value in config.to_dict().items() if key not in NUMBER_FORMAT} | own

    def as_read_elsewhere(self, module: nn.Module, dtype: torch.dtype) -> TargetFacts:
        """The targets of an export of this module as other software reads it; the module is made ready for it."""
        return self.targets

    @abstractmethod
    def examples(self, model: LoadedModel, rows: Sequence[Tokens], count: int, as_written: AsWritten) -> list[Example]:
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
