"""Logits of sequences that all continue the same tokens, which the model reads once.

    keys and values of the prefix, computed once  ->  repeated for each row of a batch  ->  only the rows are computed

A row's tokens attend to the whole prefix and to the row's own tokens before them, as if the prefix had been written in
front of it, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rankwise.data.batches import Batch
from rankwise.forward.reference import SupervisedLogits
from rankwise.inference.kv_cache import preallocated_cache


def can_share(module: nn.Module) -> bool:
    """Whether the model's cache is one of keys and values alone."""
    return bool(preallocated_cache(module))


class LogitsAfter:
    """Maps a batch to the logits (N, V) of its masked tokens, each row read behind the prefix."""

    def __init__(self, module: nn.Module, prefix: Sequence[int]) -> None:
        model: Any = module
        (self._name,) = preallocated_cache(module)
        self._logits, self._cache = SupervisedLogits(module), DynamicCache(config=model.config)
        ids = torch.tensor([list(prefix)], device=next(module.parameters()).device)
        nothing = Batch.of_tokens(ids, torch.full_like(ids, -100), len(prefix))
        with torch.inference_mode():
            self._logits(nothing, **{self._name: self._cache})

    def __call__(self, batch: Batch) -> Tensor:
        cache = deepcopy(self._cache)
        cache.batch_repeat_interleave(len(batch.input_ids))
        return self._logits(batch, **{self._name: cache})
