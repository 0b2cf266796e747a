"""Token classification: predict the tag of each word of a text, from the word's first token.

    loss = sum over words of -w(tag) log softmax(logits of the word's first token)[tag]     in nats

The model is an encoder or a decoder with a new head, whose weights are drawn anew and trained whole beside an adapter.
A decoder's logits see the words before and not those behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.data.batches import IGNORED, Batch, portions_of
from rankwise.data.preparing import TextWriting
from rankwise.models.kind import ModelKind
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.targets import head_settings, outputs_in, text_writing, weight_of
from rankwise.objectives.texts import heads_of, load_text_classifier, logits_of, padded, random_ids
from rankwise.runs.records import Callback
from rankwise.runs.target_facts import TargetFacts
from rankwise.text.encode_tags import TagEncoder
from rankwise.text.rendering import Template
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

NAME = "token-classification"


@dataclass(frozen=True)
class TokenClassification:
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
            "AutoModelForTokenClassification",
            "a model that classifies tokens",
            head_seed=self.seed,
            settings=head_settings(self.targets),
        )

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        return heads_of(model)

    def writing(self, model: LoadedModel) -> TextWriting:
        return text_writing(model, self.encoder, self.targets)

    def encoder(self, template: Template, tokenizer: HubTokenizer, spec: DataConfig, limit: int) -> TagEncoder:
        return TagEncoder(tokenizer, spec, limit, self.targets)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self._batch(part) for part in portions_of(rows, max_tokens, width=lambda row: len(row.ids))]

    def _batch(self, rows: Sequence[Tokens]) -> Batch:
        inputs = padded(rows)
        targets = np.full(inputs["input_ids"].shape, IGNORED)
        for at, row in enumerate(rows):
            assert row.tags is not None, "every row has tags"
            targets[at, : len(row.ids)] = np.where(np.asarray(row.loss_mask, bool), np.asarray(row.tags), IGNORED)
        values = torch.from_numpy(targets)
        tokens = int(inputs["attention_mask"].sum())
        return Batch(inputs, values, weight_of(values[values != IGNORED], self.targets), tokens)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, C) of the N words, row by row, in float32 or more."""
        return outputs_in(logits_of(module, batch)[batch.loss_mask], self.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        outputs = self.predict(module, batch)
        weights = torch.tensor(self.targets.weights).to(outputs) if self.targets.weights else None
        return F.cross_entropy(outputs, batch.targets[batch.loss_mask], weights, reduction="sum")

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        every = random_ids(module, lengths, generator)
        return [Tokens(ids, (True,) * len(ids), tags=(0,) * len(ids)) for ids in every]
