"""Sequence classification: predict one class, or one number, for a whole text or pair of texts.

    classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
    numbers    loss = sum over rows of (output - target)^2

The model is an encoder or a decoder with a new head, whose weights are drawn anew and trained whole beside an adapter.
A decoder's head reads the last token of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.data.batches import Batch, portions_of
from rankwise.data.preparing import TextWriting
from rankwise.forward.positions import usable_positions
from rankwise.models.heads import head_modules
from rankwise.models.kind import ModelKind
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load, load_unchecked
from rankwise.objectives.targets import head_settings, outputs_in, target_loss, text_writing, weight_of
from rankwise.runs.data_report import TargetFacts
from rankwise.runs.records import Callback
from rankwise.text.encode_texts import TextEncoder
from rankwise.text.rendering import Template
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

NAME = "sequence-classification"
LONGEST_MODEL = 1_000_000
"""Tokenizers that know no longest text name a number beyond this."""


@dataclass(frozen=True)
class SequenceClassification:
    targets: TargetFacts
    seed: int = 0
    """Draws the new head's weights."""
    name: str = NAME
    row_length: None = None

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        loaded = (load if checked else load_unchecked)(spec, callback, self.kind)
        config: Any = loaded.module.config
        if config.get_text_config().pad_token_id is None:  # by it a decoder finds the last token of a row
            config.pad_token_id = config.get_text_config().pad_token_id = loaded.tokenizer.pad_id
        longest = loaded.tokenizer.hub.model_max_length
        context = min(longest, loaded.context_length or longest, usable_positions(loaded.module) or longest)
        return replace(loaded, context_length=context if context < LONGEST_MODEL else None)

    @property
    def kind(self) -> ModelKind:
        return ModelKind(
            "AutoModelForSequenceClassification",
            "a model that classifies texts",
            head_seed=self.seed,
            settings=head_settings(self.targets),
        )

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Every module beside the pretrained body, and those inside it whose weights the folder lacks."""
        return tuple(dict.fromkeys([*head_modules(model.module, images=False), *model.new_modules]))

    def writing(self, model: LoadedModel) -> TextWriting:
        return text_writing(model, self.encoder, self.targets)

    def encoder(self, template: Template, tokenizer: HubTokenizer, spec: DataConfig, limit: int) -> TextEncoder:
        return TextEncoder(tokenizer, spec, limit, self.targets)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self._batch(part) for part in portions_of(rows, max_tokens, width=lambda row: len(row.ids))]

    def _batch(self, rows: Sequence[Tokens]) -> Batch:
        """Rows padded on the right to the longest of them, behind an attention mask."""
        shape = (len(rows), max(len(row.ids) for row in rows))
        arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        for at, row in enumerate(rows):
            size = len(row.ids)
            arrays["input_ids"][at, :size], arrays["attention_mask"][at, :size] = row.ids, 1
            if row.token_type_ids is not None:
                arrays["token_type_ids"][at, :size] = row.token_type_ids
        if rows[0].token_type_ids is None:
            del arrays["token_type_ids"]
        targets = np.array([0.0 if row.target is None else row.target for row in rows])
        values = torch.from_numpy(targets).long() if self.targets.classes else torch.from_numpy(targets).float()
        count = weight_of(values, self.targets)
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(inputs, values, count, int(arrays["attention_mask"].sum()))

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
        pad: int = getattr(module.config, "pad_token_id", 0)  # pyright: ignore[reportAttributeAccessIssue]
        real = batch.inputs["attention_mask"].bool()
        inputs = {**batch.inputs, "input_ids": batch.input_ids.masked_fill(~real, pad), **_without_cache(module)}
        outputs: Tensor = module(**inputs).logits
        return outputs_in(outputs, self.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return target_loss(self.predict(module, batch), batch, self.targets)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        drawn = [torch.randint(embeddings.num_embeddings, (length,), generator=generator) for length in lengths]
        return [Tokens(ids.tolist(), (False,) * len(ids), target=0.0) for ids in drawn]


def _without_cache(module: nn.Module) -> dict[str, bool]:
    """A decoder would keep keys and values for further tokens, and add them again when activations are recomputed."""
    return {"use_cache": False} if "use_cache" in signature(module.forward).parameters else {}
