"""Classification of texts: predict one class, several, or one number, for a whole text or pair of texts, or the tag of
each word of a text, from the word's first token.

    classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
    several    loss = sum over rows of the binary cross-entropy of each class, averaged over the classes
    numbers    loss = sum over rows of (output - target)^2
    tags       loss = sum over words of -w(tag) log softmax(logits of the word's first token)[tag]     in nats

The model is an encoder or a decoder with a new head, whose weights are drawn anew and trained whole beside an adapter.
Of a whole row, a decoder's head reads the last token; of a word, it has seen the words before and not those behind.

How classifiers of texts load a model, pad their rows and call the model's forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.heads import head_modules
from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load, load_unchecked
from rankwise.base.pooling import read_pooled
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.forward.reference import usable_positions
from rankwise.objectives.objective import head_settings, outputs_in, target_loss, text_writing, values_of, weight_of
from rankwise.rows.encoded.batches import IGNORED, Batch, portions_of
from rankwise.rows.text.encode_tags import TagEncoder
from rankwise.rows.text.encode_texts import TextEncoder
from rankwise.rows.text.outcome import RowEncoder
from rankwise.rows.text.rendering import Template
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import Pooling, TargetFacts

LONGEST_MODEL = 1_000_000
"""Tokenizers that know no longest text name a number beyond this."""


def load_text_classifier(
    spec: ModelConfig, callback: Callback, kind: ModelKind, pooling: Pooling, *, checked: bool
) -> LoadedModel:
    loaded = (load if checked else load_unchecked)(spec, callback, kind)
    read_pooled(loaded.module, pooling)
    modules = dict(loaded.module.named_modules())
    loaded = replace(loaded, new_modules=tuple(path for path in loaded.new_modules if path in modules))
    config: Any = loaded.module.config
    if config.get_text_config().pad_token_id is None:  # by it a decoder finds the last token of a row
        config.pad_token_id = config.get_text_config().pad_token_id = loaded.tokenizer.pad_id
    longest = loaded.tokenizer.hub.model_max_length
    context = min(longest, loaded.context_length or longest, usable_positions(loaded.module) or longest)
    return replace(loaded, context_length=context if context < LONGEST_MODEL else None)


def heads_of(model: LoadedModel) -> tuple[str, ...]:
    """Every module beside the pretrained body, and those inside it whose weights the folder lacks."""
    return tuple(dict.fromkeys([*head_modules(model.module, images=False), *model.new_modules]))


def padded(rows: Sequence[Tokens]) -> dict[str, Tensor]:
    """Inputs (B, T): rows padded on the right to the longest of them, behind an attention mask."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for at, row in enumerate(rows):
        size = len(row.ids)
        arrays["input_ids"][at, :size], arrays["attention_mask"][at, :size] = row.ids, 1
        if row.token_type_ids is not None:
            arrays["token_type_ids"][at, :size] = row.token_type_ids
    if rows[0].token_type_ids is None:
        del arrays["token_type_ids"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def logits_of(module: nn.Module, batch: Batch) -> Tensor:
    """The model's logits of padded rows."""
    pad: int = getattr(module.config, "pad_token_id", 0)  # pyright: ignore[reportAttributeAccessIssue]
    real = batch.inputs["attention_mask"].bool()
    inputs = {**batch.inputs, "input_ids": batch.input_ids.masked_fill(~real, pad), **_without_cache(module)}
    return module(**inputs).logits


def random_ids(module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[list[int]]:
    embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    drawn = [torch.randint(embeddings.num_embeddings, (length,), generator=generator) for length in lengths]
    return [ids.tolist() for ids in drawn]


def _without_cache(module: nn.Module) -> dict[str, bool]:
    """A decoder would keep keys and values for further tokens, and add them again when activations are recomputed."""
    return {"use_cache": False} if "use_cache" in signature(module.forward).parameters else {}


OF_TEXTS, OF_WORDS = "sequence-classification", "token-classification"


@dataclass(frozen=True)
class TextClassification:
    """Which of the four it is follows from its targets."""

    targets: TargetFacts
    seed: int = 0
    """Draws the new head's weights."""
    row_length: None = None

    @property
    def name(self) -> str:
        return OF_WORDS if self._of_words else OF_TEXTS

    @property
    def _of_words(self) -> bool:
        return self.targets.form == "tags"

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        return load_text_classifier(spec, callback, self.kind, self.targets.pooling, checked=checked)

    @property
    def kind(self) -> ModelKind:
        of_texts = "AutoModelForSequenceClassification", "a model that classifies texts"
        of_words = "AutoModelForTokenClassification", "a model that classifies tokens"
        settings = head_settings(self.targets)
        return ModelKind(*(of_words if self._of_words else of_texts), head_seed=self.seed, settings=settings)

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        return heads_of(model)

    def writing(self, model: LoadedModel) -> TextWriting:
        return text_writing(model, self.encoder, self.targets)

    def encoder(self, template: Template, tokenizer: HubTokenizer, spec: DataConfig, limit: int) -> RowEncoder:
        return (TagEncoder if self._of_words else TextEncoder)(tokenizer, spec, limit, self.targets)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self._batch(part) for part in portions_of(rows, max_tokens, width=lambda row: len(row.ids))]

    def _batch(self, rows: Sequence[Tokens]) -> Batch:
        inputs = padded(rows)
        targets = _tags_of(rows, inputs["input_ids"]) if self._of_words else values_of(rows, self.targets)
        count = weight_of(self._learned(targets, targets != IGNORED), self.targets)
        return Batch(inputs, targets, count, int(inputs["attention_mask"].sum()))

    def _learned(self, values: Tensor, mask: Tensor) -> Tensor:
        """Of all tokens (B, T, ...) those that begin a learned word (N, ...); every one of whole rows."""
        return values[mask] if self._of_words else values

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,); or logits (N, C) of the N words, row by row. In float32 or
        more."""
        return outputs_in(self._learned(logits_of(module, batch), batch.loss_mask), self.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        targets = self._learned(batch.targets, batch.loss_mask)
        return target_loss(self.predict(module, batch), targets, self.targets)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        every = random_ids(module, lengths, generator)
        if self._of_words:
            return [Tokens(ids, (True,) * len(ids), tags=(0,) * len(ids)) for ids in every]
        nothing = [0.0] * self.targets.outputs if self.targets.form == "several" else 0.0
        return [Tokens(ids, (False,) * len(ids), target=nothing) for ids in every]


def _tags_of(rows: Sequence[Tokens], ids: Tensor) -> Tensor:
    """(B, T) numbers of tags, IGNORED at tokens that begin no learned word and behind the end of a row."""
    targets = np.full(ids.shape, IGNORED)
    for at, row in enumerate(rows):
        assert row.tags is not None, "every row has tags"
        targets[at, : len(row.ids)] = np.where(np.asarray(row.loss_mask, bool), np.asarray(row.tags), IGNORED)
    return torch.from_numpy(targets)
