"""Sequence classification: predict one class, several, or one number, for a whole text or pair of texts.

    classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
    several    loss = sum over rows of the binary cross-entropy of each class, averaged over the classes
    numbers    loss = sum over rows of (output - target)^2

The model is an encoder or a decoder with a new head, whose weights are drawn anew and trained whole beside an adapter.
A decoder's head reads the last token of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.data.batches import Batch, portions_of
from rankwise.data.preparing import TextWriting
from rankwise.models.kind import ModelKind
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.targets import head_settings, outputs_in, target_loss, text_writing, values_of, weight_of
from rankwise.objectives.texts import heads_of, load_text_classifier, logits_of, padded, random_ids
from rankwise.runs.data_report import TargetFacts
from rankwise.runs.records import Callback
from rankwise.text.encode_texts import TextEncoder
from rankwise.text.rendering import Template
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

NAME = "sequence-classification"


@dataclass(frozen=True)
class SequenceClassification:
    targets: TargetFacts
    seed: int = 0
    """Draws the new head's weights."""
    name: str = NAME
    row_length: None = None

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        return load_text_classifier(spec, callback, self.kind, checked=checked)

    @property
    def kind(self) -> ModelKind:
        return ModelKind(
            "AutoModelForSequenceClassification",
            "a model that classifies texts",
            head_seed=self.seed,
            settings=head_settings(self.targets),
        )

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        return heads_of(model)

    def writing(self, model: LoadedModel) -> TextWriting:
        return text_writing(model, self.encoder, self.targets)

    def encoder(self, template: Template, tokenizer: HubTokenizer, spec: DataConfig, limit: int) -> TextEncoder:
        return TextEncoder(tokenizer, spec, limit, self.targets)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self._batch(part) for part in portions_of(rows, max_tokens, width=lambda row: len(row.ids))]

    def _batch(self, rows: Sequence[Tokens]) -> Batch:
        inputs = padded(rows)
        values = values_of(rows, self.targets)
        return Batch(inputs, values, weight_of(values, self.targets), int(inputs["attention_mask"].sum()))

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
        return outputs_in(logits_of(module, batch), self.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return target_loss(self.predict(module, batch), batch, self.targets)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        nothing = [0.0] * self.targets.outputs if self.targets.form == "several" else 0.0
        every = random_ids(module, lengths, generator)
        return [Tokens(ids, (False,) * len(ids), target=nothing) for ids in every]
