"""How classifiers of texts load a model, pad their rows and call the model's forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.config.models import ModelConfig
from rankwise.data.batches import Batch
from rankwise.forward.positions import usable_positions
from rankwise.models.heads import head_modules
from rankwise.models.kind import ModelKind
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load, load_unchecked
from rankwise.models.pooling import read_pooled
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import Pooling
from rankwise.text.tokenize import Tokens

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
