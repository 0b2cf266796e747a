"""One forward and backward pass over fake images: what a model of images saves, and what lives beside it.

    saved      bytes that the backward pass needs, by block, as of texts (fake_pass.py)
    passing    the most bytes that live at once, less those that are saved when the forward pass ends

The second number is of tensors alone, followed from the operation that makes them to the end of their last reference.
Gradients of weights are dropped as soon as they are there: a plan counts them for itself. Operations are counted by
torch's own formulas.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from rankwise.adapters.base_layers import is_host
from rankwise.config.layer import NUMBER
from rankwise.forward.fake_pass import Recorder

Classify = Callable[[nn.Module, Tensor], Tensor]
"""Pixels (B, 3, S, S) to logits, as training calls the model."""
CHANNELS = 3


@dataclass
class Memory:
    """Bytes of a batch: `saved` by the path of the block, "" outside of all."""

    saved: Counter[str] = field(default_factory=Counter)
    passing: int = 0


@dataclass
class Survey:
    """Operations of a batch's forward pass; of each layer its stage, and how many inputs it maps."""

    operations: int = 0
    of_blocks: dict[str, int] = field(default_factory=dict)
    """Those of each block, by its path."""
    stages: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)


class _Surveyor(Recorder):
    """A layer's stage counts the inputs of all layers with the same number in their paths, as positions compare."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positions: dict[str, int] = {}

    def call(self, path: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        number = NUMBER.search(path)
        self.block = "" if number is None else number[1]
        super().call(path, _, given)

    def count(self, path: str, module: nn.Module, _: Any, output: Tensor) -> None:
        width = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
        self.positions[path] = self.positions.get(path, 0) + output.numel() // width


class _Living(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._there = {value.untyped_storage()._cdata for value in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        number = storage._cdata
        if number in self._there:
            return
        self._there.add(number)
        weakref.finalize(storage, self._remove, number, storage.nbytes())
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)

    def _remove(self, number: int, size: int) -> None:
        self._there.discard(number)
        self.now -= size


def measure_memory(model: nn.Module, classify: Classify, count: int, side: int, blocks: Sequence[str]) -> Memory:
    """Of a pass over `count` images of `side` pixels. `blocks` are the paths of all blocks that are there."""
    recorder, living = Recorder(model), _Living([*model.parameters(), *model.buffers()])
    with ExitStack() as hooks:
        for path in blocks:
            part = model.get_submodule(path)
            hooks.callback(part.register_forward_pre_hook(partial(recorder.enter, path)).remove)
            hooks.callback(part.register_forward_hook(recorder.leave).remove)
        for weight in model.parameters():
            if weight.requires_grad:
                hooks.callback(weight.register_post_accumulate_grad_hook(_drop_gradient).remove)
        with torch.enable_grad(), living:
            with torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value):
                loss = classify(model, _pixels(model, count, side)).float().sum()
            recorder.forget()
            loss.backward()
    saved = recorder.trace.saved
    return Memory(saved, living.most - saved.total())


def survey(model: nn.Module, classify: Classify, count: int, side: int, blocks: Sequence[str]) -> Survey:
    """A forward pass over `count` images of `side` pixels. `blocks` are the paths of all blocks that are there."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _of_attention}
    recorder = _Surveyor(model)
    with ExitStack() as hooks:
        for path, part in model.named_modules():
            if is_host(part):
                hooks.callback(part.register_forward_pre_hook(partial(recorder.call, path)).remove)
                hooks.callback(part.register_forward_hook(partial(recorder.count, path)).remove)
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
            classify(model, _pixels(model, count, side))
    counts, name = counter.get_flop_counts(), type(model).__name__
    of_blocks = {path: sum(counts[f"{name}.{path}"].values()) for path in blocks}
    return Survey(counter.get_total_flops(), of_blocks, recorder.trace.stages, recorder.positions)


def _pixels(model: nn.Module, count: int, side: int) -> Tensor:
    return torch.zeros(count, CHANNELS, side, side, dtype=next(model.parameters()).dtype)


def _of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
