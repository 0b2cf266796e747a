"""Batches of texts, and the loss of what a head says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.objectives.loss import ClassLoss, outputs_in, values_of, weight_of
from rankwise.objectives.text_classification.rows import encode_texts
from rankwise.rows.encoded.batches import IGNORED, Batch
from rankwise.rows.text.tokenize import Tokens


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


def logits_of(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's logits of padded rows."""
    pad: int = getattr(module.config, "pad_token_id", 0)  # pyright: ignore[reportAttributeAccessIssue]
    ids = inputs["input_ids"].masked_fill(~inputs["attention_mask"].bool(), pad)
    return module(**{**inputs, "input_ids": ids, **_without_cache(module)}).logits


def random_ids(module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[list[int]]:
    embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    drawn = [torch.randint(embeddings.num_embeddings, (length,), generator=generator) for length in lengths]
    return [ids.tolist() for ids in drawn]


def _without_cache(module: nn.Module) -> dict[str, bool]:
    """A decoder would keep keys and values for further tokens, and add them again when activations are recomputed."""
    return {"use_cache": False} if "use_cache" in signature(module.forward).parameters else {}


class TextLoss(ClassLoss):
    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        inputs = padded(rows)
        targets = self.values(rows, inputs["input_ids"])
        count = weight_of(self.learned(targets, targets != IGNORED), self.targets)
        return Batch(inputs, targets, count, int(inputs["attention_mask"].sum()))

    def values(self, rows: Sequence[Tokens], ids: Tensor) -> Tensor:
        """What the outputs should be, of rows whose padded tokens are `ids` (B, T): (B,) or (B, C)."""
        return values_of(rows, self.targets)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
        return outputs_in(self.learned(logits_of(module, batch.inputs), batch.loss_mask), self.targets)

    def sample_logits(self, model: LoadedModel, text: str) -> Tensor:
        if not model.encoder_decoder:
            return super().sample_logits(model, text)
        rows = encode_texts(model.tokenizer, [(text, "")], model.context_length)  # it reads the end token
        (batch,) = self.batches(rows, 1)
        return self.predict(model.module, batch.to(model.precision.device))

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        nothing = [0.0] * self.targets.outputs if self.targets.form == "several" else 0.0
        return [Tokens(ids, (False,) * len(ids), target=nothing) for ids in random_ids(module, lengths, generator)]
