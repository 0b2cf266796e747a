"""Keys and values of what was read, with room for what is yet to come.

transformers' own cache makes all keys and values anew for each token, which is as much memory traffic as the attention
over them. Here a token is written behind the others, and only when the room is full is all of it copied.

Logits of sequences that all continue the same tokens, which the model reads once.

    keys and values of the prefix, computed once  ->  repeated for each row of a batch  ->  only the rows are computed

A row's tokens attend to the whole prefix and to the row's own tokens before them, as if the prefix had been written in
front of it, up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rankwise.base.rotary_names import alike_up_to
from rankwise.forward.reference import SupervisedLogits
from rankwise.rows.encoded.batches import Batch

ROOM = 64
"""Positions that are made at once."""


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, T, head size), which are the beginning of larger tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self._rooms[0] = _appended(self.keys, self._rooms[0], key_states)
        self.values, self._rooms[1] = _appended(self.values, self._rooms[1], value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rooms = [None, None]  # else all that is left out would be held until the next token
        super().batch_select_indices(indices)


def _appended(past_states: Tensor | None, room: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
    """`past_states` is the beginning of `room`, or of nothing where somebody has replaced it, say by fewer rows."""
    past = 0 if past_states is None or not past_states.numel() else past_states.shape[-2]
    length = past + new.shape[-2]
    if past_states is None or room is None or room.data_ptr() != past_states.data_ptr() or room.shape[-2] < length:
        room = new.new_empty((*new.shape[:2], length + ROOM, new.shape[-1]))
        if past_states is not None and past:
            room[:, :, :past] = past_states
    room[:, :, past:length] = new
    return room[:, :, :length], room


def cache_name(module: nn.Module) -> str | None:
    """The argument that the model takes a cache by; None where it takes none."""
    model: Any = module
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)


def new_cache(module: nn.Module) -> DynamicCache | None:
    """Make an empty cache for a decoder, with spare room for tokens where the model caches keys and values alone; None
    where the model takes no such cache."""
    model: Any = module
    usual = getattr(model, "_supports_default_dynamic_cache", None)
    if cache_name(module) is None or usual is None or not usual():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if is_of_keys_and_values(cache):
        cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_of_keys_and_values(cache: DynamicCache) -> bool:
    """Whether each layer keeps keys and values of its own, and nothing else."""
    return all(type(layer) in (RoomyLayer, DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def can_share(module: nn.Module) -> bool:
    """Whether the model's cache is one of keys and values alone, which are the same whatever is written behind them."""
    alike, cache = alike_up_to(module), new_cache(module)
    return alike == inf and cache is not None and is_of_keys_and_values(cache)


class LogitsAfter:
    """Maps a batch to the logits (N, V) of its masked tokens, each row read behind the prefix."""

    def __init__(self, module: nn.Module, prefix: Sequence[int]) -> None:
        model: Any = module
        self._name = str(cache_name(module))
        self._logits, self._cache = SupervisedLogits(module), DynamicCache(config=model.config)
        ids = torch.tensor([list(prefix)], device=next(module.parameters()).device)
        nothing = Batch.of_tokens(ids, torch.full_like(ids, -100), len(prefix))
        with torch.inference_mode():
            self._logits(nothing, **{self._name: self._cache})

    def __call__(self, batch: Batch) -> Tensor:
        cache = deepcopy(self._cache)
        cache.batch_repeat_interleave(len(batch.input_ids))
        return self._logits(batch, **{self._name: cache})
